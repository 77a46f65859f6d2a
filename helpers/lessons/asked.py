"""What each prediction asks for, in one sentence with its unit: what the form of `predict` shows."""

from __future__ import annotations

SHARE_LEFT = "Which share of the opening run's forgetting is left, at equal gain"

QUESTIONS = {
    "00-gain": "By how many nats per token will the held-out loss fall?",
    "00-retention": "By how many nats per token does the loss on the retention text change? Above 0: it rises.",
    "00-leak": "How many percent of the test text's runs of eight tokens also stand in the training windows?",
    "01-cost": "By how many nats per token does the loss rise when you skip the costliest part?",
    "01-worth": "How many nats is the context worth to this model?",
    "02-zero": "What is the weight after three zero gradients? It begins at 1.",
    "02-through": "What is the first layer's gradient when the middle layer is frozen?",
    "02-caught": "How many of the eight broken freezes does the proof catch?",
    "04-heart": "By how many nats per token will the loss on unseen text change? Above 0: it gets worse.",
    "04-means": "By how many percent will the gradient be off, with the mean of the means?",
    "04-rate": "The main plan's best rate divided by full training's: which factor?",
    "05-steps": "After equally many steps: the main plan's forgetting divided by full training's?",
    "06-rate": f"{SHARE_LEFT}, with a third of the rate?",
    "06-stop": f"{SHARE_LEFT}, when you stop early?",
    "06-rewind": f"{SHARE_LEFT}, after rewinding?",
    "06-replay": f"{SHARE_LEFT}, with replay?",
    "06-freeze": f"{SHARE_LEFT}, with the first half frozen?",
    "08-memory": "How many GiB does full training of the 7 B model need?",
    "C1": "The residual error of the article's formula, where it comes nearest? 0: equal. 1: as far off as 0.",
    "C2": "Which share of the context's worth is left without the middle MLP? 1: all of it. 0: nothing.",
    "C3": "How many of the attention tensors hold a gradient of zero, once they are frozen?",
    "C4": "With attention and embeddings frozen, which share of the parameters trains? Between 0 and 1.",
    "C5": "With attention and embeddings frozen, how many millions of parameters train?",
    "C6": "Which share of the parameters trains under the rule of two substrings? Between 0 and 1.",
    "C7": "In how many of the six situations does a frozen weight move, if the optimizer holds all parameters?",
    "C8": "At how many percent of the looks is the loss lower than at the look before?",
    "C9": "The gradient's length in the last quarter of the run, divided by that in the first?",
    "C10": "The main plan's forgetting minus full training's at equal gain, in nats per token? Below 0: less.",
    "C11": "By how many percent does the peak of memory fall?",
    "C12": "The main plan's time for a step, divided by full training's?",
    "C13": "Which share of full training's gain on new chapters does the main plan gain?",
    "C14": "Which share of full training's style has the main plan, at equal gain?",
    "C15": "The time of a forward pass with unmerged LoRA, divided by that of a partly tuned model?",
}
