"""Training of Mneme's model bundles: text -> tokenizer -> token files -> weights -> int8 bundle."""
