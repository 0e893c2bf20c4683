"""A token classification model that labels some words as people."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast


WORDS = ["[UNK]", "[PAD]", "Ada", "Lovelace", "Charles", "wrote", "to"]
PEOPLE = {"Ada": 1, "Lovelace": 2, "Charles": 1}  # B-PER and I-PER
PLACE = 16  # context length of the model


def save_names_model(folder, labels=("O", "B-PER", "I-PER")):
    """Save a BERT with word vectors that encode the label and layers that do not change them; return the folder."""
    raw = Tokenizer(models.WordLevel({word: id for id, word in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]")
    names = dict(enumerate(labels))
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=PLACE,
        id2label=names,
        label2id={label: id for id, label in names.items()},
    )
    model = BertForTokenClassification(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name.endswith("LayerNorm.weight") else 0.0)
        for id, word in enumerate(WORDS):
            model.bert.embeddings.word_embeddings.weight[id, PEOPLE.get(word, 0)] = 1.0
        model.classifier.weight.copy_(torch.eye(len(labels), 8))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
