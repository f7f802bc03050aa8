"""The road from crawl to trained model: the stages, the tokens and the training. The only package that sees all the others."""
