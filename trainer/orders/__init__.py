"""The study of data order: the same model, rows and settings, met in different orders.

``mixgym orders`` trains several models that differ in nothing else, measures how a sample's final
loss depends on when it was first seen, and merges the models. Source: Ju et al., "Mitigating
Training Imbalance in LLM Fine-Tuning via Selective Parameter Merging", arXiv 2410.03743.
"""
