"""OpenAI's completions, embeddings and models, and the tokenizer beside them."""
