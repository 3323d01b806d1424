"""Strategies in the plain words of their definitions, in float64, token by token."""

import math

import torch

from deepen_core.fusion.anchors.shared_tokens import Anchors


def column(vocabulary, token_id, tokens):
    """What a token stands for: an anchor, "stop", "unknown", or None."""
    value = vocabulary.token_bytes(token_id)
    if token_id in vocabulary.stop_ids:
        return "stop"
    if value is None:
        return "unknown"
    return next((value[:n] for n in range(len(value), 0, -1) if value[:n] in tokens), None)


def plain_by_column(vocabularies, logprobs, weights, main, mean, floor=0.0):
    """One sequence, as the definition of strategies by column has it, with a mean of the members' values."""
    tokens = set(Anchors.shared_by(vocabularies, ["m"] * len(vocabularies)).tokens)
    keys = [*tokens, "stop"]
    sums = []
    for v, line in zip(vocabularies, logprobs, strict=True):
        mass = dict.fromkeys(keys, 0.0)
        for token_id, value in enumerate(line.double().exp().tolist()):
            where = column(v, token_id, tokens)
            if where in mass:
                mass[where] += value
        sums.append(mass)
    room = sum(sums[main].values())
    own = {k: m / room for k, m in sums[main].items()}
    target = {}
    for k in keys:
        values = []
        for n, mass in enumerate(sums):
            told = own[k]
            if n != main:
                told = (1 - floor) * (mass[k] + (1 - sum(mass.values())) * own[k]) + floor * own[k]
            values.append(told)
        target[k] = mean(values, weights)
    total = sum(target.values())
    found = []
    for token_id, logprob in enumerate(logprobs[main].double().tolist()):
        where = column(vocabularies[main], token_id, tokens)
        found.append(logprob + (math.log(target[where] / total / own[where]) if where in target else 0.0))
    return torch.tensor(found).log_softmax(-1)


def plain_product(vocabularies, logprobs, weights, main, floor):
    def mean(values, weights):
        return math.exp(sum(w * math.log(v) for v, w in zip(values, weights, strict=True)))

    return plain_by_column(vocabularies, logprobs, weights, main, mean, floor)


def plain_deepen(vocabularies, logprobs, weights, main, power):
    def mean(values, weights):
        return sum(w * v**power for v, w in zip(values, weights, strict=True)) ** (1 / power)

    return plain_by_column(vocabularies, logprobs, weights, main, mean)


def plain_union(vocabularies, logprobs, weights, main, top_k):
    """One sequence, as the definition has it."""

    def counterpart(v, token_id, other):
        value = v.token_bytes(token_id)
        if token_id in v.stop_ids:
            return "stop"
        lengths = range(len(value or b""), 0, -1)
        return next((value[:n] for n in lengths if value[:n] in other.tokens), None)

    mine = vocabularies[main]
    lines = [line.double().exp().tolist() for line in logprobs]
    named = [sorted(range(v.size), key=lambda i, p=p: -p[i])[:top_k] for v, p in zip(vocabularies, lines, strict=True)]
    union = {counterpart(v, i, mine) for v, ids in zip(vocabularies, named, strict=True) for i in ids} - {None}

    def mass(n, key):
        v, p = vocabularies[n], lines[n]
        if key == "stop":
            return sum(p[i] for i in v.stop_ids)
        begin = counterpart(mine, mine.tokens[key], v)
        found = 0.0 if begin is None else p[v.tokens[begin]]
        if n != main:
            begun = [i for i in named[n] if counterpart(v, i, mine) == key and v.token_bytes(i) != key]
            found += sum(p[i] for i in begun)
        return found

    average = dict.fromkeys(union, 0.0)
    for n, weight in enumerate(weights):
        given = {key: mass(n, key) for key in union}
        total = sum(given.values())
        for key in union:
            average[key] += weight * (given[key] / total if total else 0.0)
    total = sum(average.values())
    room = sum(mass(main, key) for key in union)
    found = []
    for token_id, value in enumerate(lines[main]):
        key = "stop" if token_id in mine.stop_ids else mine.token_bytes(token_id)
        if key in union:
            new = average[key] / total * room
            found.append(new * (value / mass(main, "stop") if key == "stop" else 1.0))
        else:
            found.append(value)
    return (torch.tensor(found) / sum(found)).log()
