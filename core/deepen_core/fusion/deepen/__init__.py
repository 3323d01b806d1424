"""DeePEn: averaging in a relative space of embeddings, and the search back."""
