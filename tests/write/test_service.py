"""A user's desk without a network: what is kept, what is refused, what is forgotten."""

import itertools

import pytest

from jaxllm.errors import UserError
from jaxllm.write import Lexicon, Service, UserStore, Writer

NAME, TEXT = "anna", "please send the "


@pytest.fixture
def service(tmp_path):
    return new_service(tmp_path)


def new_service(folder):
    shared = Lexicon()
    for line in ("please send the invoice today", "please send the receipt today", "please send the invoice"):
        shared.learn(line)
    return Service(shared, None, UserStore(folder))


def kept(service):
    """Return what of a user is on the disk."""
    return service.store.export(service.store.load(NAME))


def test_half_a_character_is_refused_and_the_rest_is_saved(service):
    desk = service.open(NAME)
    desk.typed(1, "")
    desk.typed(2, "Good text. ")
    with pytest.raises(UserError, match=r"the text has half a character at 14"):
        desk.typed(3, "Good text. An \ud83d cut. ")
    desk.typed(3, "Good text. An \U0001f600 smiles. ")
    desk.close()
    words = {gram[-2] for gram in kept(service)["lexicon"]["grams"]}
    assert {"text.", "\U0001f600"} <= words


def test_what_a_writer_learned_is_saved_even_with_half_a_character(service):
    writer = Writer(service.shared, service.store.load(NAME))
    writer.learn("an \ud83d cut")
    service.store.save(NAME, writer.user)
    assert kept(service) == service.store.export(writer.user)


def test_answers_are_saved_where_no_sentence_was_finished(service, tmp_path):
    desk = service.open(NAME)
    first, other = desk.typed(1, TEXT)[0].word, desk.typed(2, TEXT)[1].word
    desk.refused()
    desk.typed(3, TEXT)
    desk.typed(4, TEXT + "z")  # what is typed is not what is shown
    desk.close()
    assert kept(service)["rejections"] == [["send the", first, 2]]
    service = new_service(tmp_path)
    desk = service.open(NAME)
    desk.typed(1, TEXT)
    desk.refused()
    assert desk.typed(2, TEXT)[0].word == other
    desk.close()
    assert kept(service)["rejections"] == [["send the", first, 3]]


def test_a_suggestion_that_is_taken_is_saved_as_refused_no_longer(service):
    desk = service.open(NAME)
    desk.typed(1, TEXT)
    desk.refused()
    desk.close()
    desk = service.open(NAME)
    desk.typed(1, TEXT)
    desk.took(TEXT, whole=False)
    desk.close()
    assert kept(service)["rejections"] == []


def test_nothing_is_written_of_who_only_looks(service):
    desk = service.open(NAME)
    desk.typed(1, TEXT)
    desk.close()
    assert not service.store.path(NAME).exists()


def test_an_erased_user_is_answered_as_a_new_one(service):
    numbers = itertools.count()
    desk, tab, stranger = service.open(NAME), service.open(NAME), service.open("bert")

    def take(one, count):
        for _ in range(count):
            one.typed(next(numbers), "please se")
            one.took("please se", whole=False)

    def says(one):
        return [one.typed(next(numbers), text) for text in (TEXT, "qu")]

    desk.typed(next(numbers), "")
    desk.typed(next(numbers), "Quokkas munch.\nQuokkas munch.\n")
    take(desk, 300)  # the first 200 calibrate
    assert says(desk) != says(stranger)
    service.erase(NAME)
    assert says(desk) == says(tab) == says(stranger)
    take(desk, 150)  # these are not the 400th
    take(stranger, 150)
    assert says(desk) == says(stranger)
    desk.close()
    tab.close()
    assert "quokkas" not in str(kept(service)).lower()
