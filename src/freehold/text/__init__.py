"""Text: messages, tokenizers, chat templates, and text that arrives piece by piece.

Knows strings and token ids; knows nothing of models, engines, files of weights or wire protocols.
"""
