"""How good an answer is: one number for each task, equal to the library's that others report.

classification  accuracy, precision, recall and F1 of each class, macro F1, the confusion matrix
spans           names in tagged sentences, as seqeval counts them
answers         answers to questions, or none, as SQuAD 2.0's script counts them
bleu, rouge     translations and summaries, by the libraries that everybody uses
perplexity      how well a language model foretells a text

What cannot be compared (lists of two lengths, no rows, labels of two kinds) raises InputError.
"""
