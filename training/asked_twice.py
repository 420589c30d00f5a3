"""Questions that stand in several records of a set, as "What is glaucoma?" does: any of their passages answers them."""
import collections


def asked_as(question):
    """What questions that ask the same have in common."""
    return ' '.join(question.lower().split())


def owners_of(asked):
    """[(question, number of its passage)] -> {asked_as: numbers of all passages with this question}."""
    owners = collections.defaultdict(set)
    for question, number in asked:
        owners[asked_as(question)].add(number)
    return owners
