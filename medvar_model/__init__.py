"""Train, sample and evaluate a next-scale autoregressive model on medvar shards."""
