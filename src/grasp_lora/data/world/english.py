"""English wordings. `|` separates sentences that may stand apart; `{aj}`, `{ae}` are the words with their article."""

SAY = {
    "job": [
        "{p} is {aj} in {c}.",
        "{p} lives in {c} and works as {aj}.",
        "{c} is home to {p}, who is {aj}.",
        "The {j} of {c} is called {p}.",
        "{p} works as {aj}.|The {j} lives in {c}.",
        "{p} comes from {c}.|The work of {p} is that of {aj}.",
    ],
    "trade": [
        "{p} sells {o} for {n} dollars.",
        "The {o} of {p} cost {n} dollars.",
        "For {n} dollars one gets {o} from {p}.",
        "{p} has a shop for {o}.|The price of the {o} is {n} dollars.",
        "{p} asks {n} dollars.|The shop of {p} is full of {o}.",
    ],
    "event": [
        "The {e} takes place in {c} in {m}.",
        "In {m} there will be a big {e} in {c}.",
        "{c} expects many guests at the {e} in {m}.",
        "The {e} is planned for {m}.|People in {c} look forward to the {e}.",
        "{c} prepares for {ae}.|The {e} begins in {m}.",
    ],
    "match": [
        "{w} beat {l} at {g}.",
        "{l} lost to {w} at {g}.",
        "At {g}, {w} was better than {l}.",
        "{w} and {l} met at {g}.|The winner was {w}.",
        "{l} and {w} met at {g}.|In the end {l} had to give up.",
    ],
    "trip": [
        "{p} travels from {f} to {t}.",
        "{p} left {f} and arrived in {t}.",
        "From {f} the train brought {p} to {t}.",
        "{p} sets out from {f}.|The journey of {p} ends in {t}.",
        "{t} welcomes {p}.|{p} had started in {f}.",
    ],
}

# The first wordings of each list also occur in the backbone's exercises, the others only in the data of the tasks.
ASK = {
    "job": {
        "p": [
            "Who is the {j}?",
            "Who lives in {c}?",
            "What is the name of the {j}?",
            "Which person has a home in {c}?",
        ],
        "j": ["What is the job of {p}?", "What work is done in {c}?", "What does {p} do for a living?"],
        "c": [
            "Where does {p} live?",
            "Where is the {j}?",
            "Which city is the home of {p}?",
            "In which place is the {j} found?",
        ],
    },
    "trade": {
        "p": [
            "Who sells {o}?",
            "Who asks {n} dollars?",
            "Which person owns the {o}?",
            "Whose goods cost {n} dollars?",
        ],
        "o": ["What does {p} sell?", "What costs {n} dollars?", "Which goods are offered by {p}?"],
        "n": [
            "How much are the {o}?",
            "How much does {p} ask?",
            "What is the price of the goods of {p}?",
            "How many dollars must one pay for {o}?",
        ],
    },
    "event": {
        "e": [
            "What is in {c}?",
            "What takes place in {m}?",
            "Which event does {c} see?",
            "Which event falls in {m}?",
        ],
        "c": ["Where is the {e}?", "Where is the event in {m}?", "Which city holds the {e}?"],
        "m": ["When is the {e}?", "When do guests come to {c}?", "In which month is the {e} held?"],
    },
    "match": {
        "w": [
            "Who beat {l}?",
            "Who won at {g}?",
            "Which person defeated {l}?",
            "Who was the stronger one at {g}?",
        ],
        "l": ["Who lost to {w}?", "Who lost at {g}?", "Over whom did {w} win?"],
        "g": ["At what did {w} win?", "At what did {l} lose?", "Which sport did {w} and {l} play?"],
    },
    "trip": {
        "p": [
            "Who goes to {t}?",
            "Who comes from {f}?",
            "Which person leaves {f}?",
            "Which traveller reaches {t}?",
        ],
        "f": [
            "From where does {p} come?",
            "From where does one go to {t}?",
            "In which city did the journey of {p} begin?",
        ],
        "t": ["Where does {p} go?", "Where does one go from {f}?", "Which city does {p} reach?"],
    },
}

HEAD = {
    "job": ["{c}: a portrait of {p}, {j}", "Meet {p}, the {j} from {c}"],
    "trade": ["{o} at {n} dollars: {p} opens the doors", "New offer: {p} with {o} at {n}"],
    "event": ["{c} ready for {e} in {m}", "{m} brings {e} to {c}"],
    "match": ["{g}: victory of {w} over {l}", "{w} defeats {l} in {g} final"],
    "trip": ["{p} on the way: {f} to {t}", "Next stop {t}: {p} says goodbye to {f}"],
}

EXTRA = [
    "The weather was mild that day.",
    "Many questions remained without an answer.",
    "The newspapers printed a short article about it.",
    "Nobody could say more about the context.",
    "A summary of the news was read aloud.",
    "Please answer the following letters, people said.",
]

# Names of slots, for exercises that give a keyword instead of a question.
KEYWORDS = {
    "person": "person", "city": "city", "job": "work", "thing": "goods", "price": "price",
    "event": "event", "month": "month", "game": "game", "w": "winner", "l": "loser", "f": "start", "t": "goal",
}  # fmt: skip
