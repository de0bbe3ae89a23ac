"""English sentences and their German: a real fragment, in which one rule depends on another.

Articles and adjectives agree with the noun in gender, number and case; the verb is second, so that
it moves before the subject where an adverb is first; it is last after "weil"; and a participle goes
to the end of its clause.  One sentence has one translation here, so BLEU can reach 100.

Source: the rules, Durrell 2017, "Hammer's German grammar and usage", chs. 4, 5 and 19.
"""

from reference.data.grammar.drawing import Draw, capitalized, distinct

# singular, plural; German: gender, singular, plural
NOUNS = {
    "who": """dog dogs m Hund Hunde, cat cats f Katze Katzen, child children n Kind Kinder,
        woman women f Frau Frauen, man men m Mann Männer, teacher teachers m Lehrer Lehrer,
        bird birds m Vogel Vögel, horse horses n Pferd Pferde, friend friends m Freund Freunde,
        girl girls n Mädchen Mädchen, sister sisters f Schwester Schwestern""",
    "what": """book books n Buch Bücher, apple apples m Apfel Äpfel, flower flowers f Blume Blumen,
        ball balls m Ball Bälle, lamp lamps f Lampe Lampen, letter letters m Brief Briefe,
        picture pictures n Bild Bilder, car cars n Auto Autos, ship ships n Schiff Schiffe,
        key keys m Schlüssel Schlüssel, bag bags f Tasche Taschen, table tables m Tisch Tische""",
}
NOUNS = {kind: [entry.split() for entry in text.split(",")] for kind, text in NOUNS.items()}
ADJECTIVES = """old alt, small klein, young jung, big groß, new neu, red rot, beautiful schön,
    strange seltsam, tired müd, cold kalt, green grün, heavy schwer, black schwarz"""
ADJECTIVES = [entry.split() for entry in ADJECTIVES.split(",")]
# he, they, participle; er, sie, Partizip
VERBS = """sees see seen sieht sehen gesehen, finds find found findet finden gefunden,
    buys buy bought kauft kaufen gekauft, draws draw drawn zeichnet zeichnen gezeichnet,
    brings bring brought bringt bringen gebracht, loves love loved liebt lieben geliebt,
    holds hold held hält halten gehalten, needs need needed braucht brauchen gebraucht,
    washes wash washed wäscht waschen gewaschen, paints paint painted malt malen gemalt,
    carries carry carried trägt tragen getragen"""
VERBS = [entry.split() for entry in VERBS.split(",")]
ADVERBS = (
    ("today", "heute"), ("now", "jetzt"), ("here", "hier"), ("again", "wieder"),
    ("every day", "jeden Tag"), ("in the evening", "am Abend"), ("on Monday", "am Montag"),
)  # fmt: skip
# The endings of der and ein, nominative and accusative, by gender, p the plural.
DER = {"m": ("der", "den"), "f": ("die", "die"), "n": ("das", "das"), "p": ("die", "die")}
EIN = {"m": ("", "en"), "f": ("e", "e"), "n": ("", ""), "p": ("e", "e")}
AFTER_DER = {"m": ("e", "en"), "f": ("e", "e"), "n": ("e", "e"), "p": ("en", "en")}
AFTER_EIN = {"m": ("er", "en"), "f": ("e", "e"), "n": ("es", "es"), "p": ("en", "en")}


def translation(number, *, part="train", seed=0):
    """Pairs of sentences -> list of (English, German).

    Raises InputError for an unknown part, or more pairs than there are.
    """
    draw = Draw(part, seed)
    return distinct(lambda: draw.own(lambda: _sentence(draw), lambda row: row[0]), number)


def _sentence(draw):
    english, german = _clause(draw, last=False)
    if draw.percent(35):
        reason, grund = _clause(draw, last=True)
        english, german = f"{english} because {reason}", f"{german}, weil {grund}"
    return tuple(capitalized(text) + "." for text in (english, german))


def _clause(draw, *, last):
    """English and German of one clause; last: the verb is, in German, after weil."""
    subject, subjekt, many = _noun_phrase(draw, "who", 0)
    things, dinge, _ = _noun_phrase(draw, draw.choice(("who", "what", "what")), 1)
    verb, adverb = draw.choice(VERBS), None
    if draw.percent(60):
        adverb = draw.choice(ADVERBS)
    spoken, gesagt, partizip = verb[many], verb[3 + many], ""
    if draw.percent(40):
        spoken, gesagt, partizip = (
            f"{('has', 'have')[many]} {verb[2]}",
            ("hat", "haben")[many],
            verb[5],
        )
    time, zeit = adverb or ("", "")
    first = bool(adverb) and not last and draw.percent(50)
    english = [time, subject, spoken, things] if first else [subject, spoken, things, time]
    if last:
        german = [subjekt, zeit, dinge, partizip, gesagt]
    elif first:
        german = [zeit, gesagt, subjekt, dinge, partizip]
    else:
        german = [subjekt, gesagt, zeit, dinge, partizip]
    return " ".join(filter(None, english)), " ".join(filter(None, german))


def _noun_phrase(draw, kind, case):
    """English, German, and whether it is many; case: 0 nominative, 1 accusative."""
    one, more, gender, eins, viele = draw.choice(NOUNS[kind])
    adjective, adjektiv = draw.choice(ADJECTIVES) if draw.percent(60) else ("", "")
    many = draw.below(2)
    noun, wort, gender = (more, viele, "p") if many else (one, eins, gender)
    article = draw.choice(("the", "my", "two", "many") if many else ("the", "my", "a"))
    if article == "the":
        artikel, ending = DER[gender][case], AFTER_DER[gender][case]
    elif article in ("two", "many"):
        artikel, ending = {"two": "zwei", "many": "viele"}[article], "e"
    else:
        artikel = {"my": "mein", "a": "ein"}[article] + EIN[gender][case]
        ending = AFTER_EIN[gender][case]
    if article == "a" and (adjective or noun)[0] in "aeiou":
        article = "an"
    english = " ".join(filter(None, (article, adjective, noun)))
    german = " ".join(filter(None, (artikel, adjektiv and adjektiv + ending, wort)))
    return english, german, many
