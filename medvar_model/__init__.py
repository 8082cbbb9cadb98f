"""Train, sample and judge a next-scale autoregressive model on medvar shards."""
