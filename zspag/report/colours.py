"""Which colour and mark a name has, in every figure: a method, a network, a kind of sample."""

import seaborn as sns

# seaborn's colour-blind palette; a name listed below has the same colour in every figure, whatever stands beside it.
COLOURS = sns.color_palette("colorblind", 10).as_hex()
# Every method has a colour and a mark of its own, whatever stands beside it. Relatives share a colour.
METHODS = {
    "ZS-PAG": (0, 0),
    "ZS-PAG, not calibrated": (0, 1),
    "removal (ours)": (0, 2),
    "DELETE": (1, 1),
    "ZS-PAG, second-best labels": (1, 2),
    "subspace of noise": (1, 3),
    "SalUn": (1, 4),
    "boundary shrink": (1, 7),
    "boundary expanding": (1, 6),
    "retrained": (2, 2),
    "subspace of retain data": (2, 3),
    "fine-tuning on retain data": (2, 4),
    "UNSC": (2, 5),
    "SCRUB": (2, 6),
    "Fisher forgetting": (2, 7),
    "SSD": (2, 8),
    "ZS-PAG without projection": (3, 3),
    "subspace of forget samples": (3, 4),
    "ZS-PAG, random labels": (4, 4),
    "random subspace": (4, 5),
    "gradient ascent": (5, 5),
    "JiT": (5, 6),
    "MU-Mis": (5, 7),
    "random relabeling": (6, 6),
    "ZS-PAG, influence labels tilted once": (6, 7),
    "L2UL, adversarial": (6, 8),
    "L2UL, adversarial and importance": (6, 9),
    "AMUN, adversarial only": (6, 0),
    "ARU": (6, 1),
    "original": (7, 7),
    "original, one row edited": (7, 2),
    "head only": (5, 8),
    "head-only sampling": (5, 9),
    "rehearsal on proxies": (8, 8),
    "error-min-max noise": (8, 9),
    "GKT": (8, 0),
    "masked original": (9, 9),
    "ZS-PAG, per-epoch influence labels": (9, 0),
    "ZS-PAG, labels for the worst class": (9, 1),
    "ZS-PAG, labels for balanced classes": (9, 2),
    "ZS-PAG, labels that look ahead": (9, 3),
    "ZS-PAG, bilevel labels": (9, 4),
    "ZS-PAG, randomly tilted labels": (4, 6),
    "ZS-PAG, proxies distilled": (8, 1),
}
OLDER = {  # as older records call them
    "ZS-PAG, labels tilted once": "ZS-PAG, influence labels tilted once",
    "ZS-PAG, influence labels": "ZS-PAG, per-epoch influence labels",
    "ZS-PAG, labels tilted by lot": "ZS-PAG, randomly tilted labels",
}
KNOWN = {name: colour for name, (colour, _) in METHODS.items()}
KNOWN |= {"proxies": 0, "unlearned": 0, "soft": 0, "noise": 1, "second_best": 1, "retain data": 2, "oracle": 2}
KNOWN |= dict.fromkeys(("without projection", "forget samples", "forget", "forgotten class"), 3)
KNOWN |= {"random": 4, "influence": 6, "before": 7, "retained classes": 7, "process": 9}
METHOD_COLOURS = {name: COLOURS[colour] for name, colour in KNOWN.items()}  # what a notebook's own figures use
