"""DeePEn ensembles in LangChain, in LlamaIndex and on the command line.

Each of the packages `langchain`, `llama_index` and `cli` in here needs the extra of that name.
"""
