"""Small corpora that this project makes itself, from a grammar: for a first run without any data.

They are not language as people use it, and a figure reached on them says only that a model can
learn what the grammar asks for.  Each asks for something that counting words cannot do:

  reviews      sentiment, where negation and contrast decide      text, label
  entities     names never seen in training, known by context     words, tags
  translation  English to German: agreement, and verbs that move  two files of sentences
  summaries    who did what where, among others who did not       text, summary
  questions    on paragraphs, some without an answer              SQuAD 2.0's form
  stories      plain text to generate

The same seed gives the same rows on every machine, of any number; a longer corpus begins with a
shorter one.  Training, validation and test share no sentence, whatever their seeds and sizes.
"""
