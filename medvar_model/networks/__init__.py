"""The networks: tokenizer and transformer, and what they are made of."""
