"""DeePEn ensembles in LangChain, in LlamaIndex and on the command line.

The packages `langchain`, `llama_index` (extra `llama-index`) and `cli` each need the extra of that name.
"""
