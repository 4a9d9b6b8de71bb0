"""What the policy samples, greedily and by chance, and the prompts it samples from."""

import math
import warnings

import pytest
import torch
from teachers import QUERIES, TEMPERATURE, make, naive_sums, sample, sums
from transformers import GenerationConfig

from wst.prompts import TeacherPrompt
from wst.teacher import Teacher
from wst.types import Instruction, Query


def test_the_models_own_sampling_defaults_are_there_to_be_ignored(tiny_model: str) -> None:
    config = GenerationConfig.from_pretrained(tiny_model)
    assert (config.top_k, config.top_p, config.temperature, config.repetition_penalty) == (2, 0.5, 0.1, 5.0)


def test_greedy_instructions_are_the_naive_argmax(teacher: Teacher) -> None:
    for query, instruction in zip(QUERIES, teacher.sample(QUERIES, greedy=True), strict=True):
        tokens: list[int] = []
        while len(tokens) < 12 and not (tokens and tokens[-1] in teacher.end_ids):
            with torch.no_grad():
                logits = teacher.policy(input_ids=torch.tensor([[*teacher.encode(query), *tokens]])).logits
            tokens.append(int(logits[0, -1].argmax()))
        assert list(instruction.token_ids) == tokens
    assert teacher.sample(QUERIES[:1], 2, greedy=True)[0] == teacher.sample(QUERIES[:1], greedy=True)[0]


def test_first_tokens_are_as_frequent_as_they_are_probable(teacher: Teacher) -> None:
    draws = 4000
    torch.manual_seed(0)
    (prompt,) = {teacher.encode(QUERIES[0])}
    teacher.max_new_tokens = 1
    try:
        tokens = [i.token_ids[0] for i in teacher.sample(QUERIES[:1], draws)]
    finally:
        teacher.max_new_tokens = 12
    with torch.no_grad():
        probability = (teacher.policy(input_ids=torch.tensor([prompt])).logits[0, -1] / TEMPERATURE).softmax(-1)
    frequency = torch.bincount(torch.tensor(tokens), minlength=len(probability)) / draws
    # Bernstein's inequality: over all tokens together it is off by more with a probability below 1e-6.
    log_odds = math.log(2 * len(probability) / 1e-6)
    bound = (2 * probability * (1 - probability) * log_odds / draws).sqrt() + 2 * log_odds / (3 * draws)
    assert ((frequency - probability).abs() <= bound).all()
    assert probability.max() > 2 * bound.max()


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_the_samples_of_a_query_stand_together(tiny_model: str, batch_size: int | None) -> None:
    teacher = make(tiny_model, sample_batch_size=batch_size)
    instructions = sample(teacher, 4)
    assert [i.prompt_ids for i in instructions] == [teacher.encode(query) for query in QUERIES for _ in range(4)]
    assert len({i.token_ids for i in instructions}) > 9
    greedy = teacher.sample(QUERIES, greedy=True)
    assert [i.token_ids for i in greedy] == [teacher.sample([q], greedy=True)[0].token_ids for q in QUERIES]


@pytest.mark.parametrize("batch_size", [None, 2])
def test_each_instruction_is_told_as_soon_as_it_has_ended(tiny_model: str, batch_size: int | None) -> None:
    teacher = make(tiny_model, sample_batch_size=batch_size)
    told: list[tuple[int, Instruction]] = []
    torch.manual_seed(0)
    instructions = teacher.sample(QUERIES, 4, on_done=lambda place, z: told.append((place, z)))
    assert sorted(place for place, _ in told) == list(range(len(instructions)))
    assert all(instructions[place] is z for place, z in told)
    size = 4 * (batch_size or len(QUERIES))
    for start in range(0, len(told), size):
        lengths = [len(z.token_ids) for _, z in told[start : start + size]]
        assert lengths == sorted(lengths)  # the short ones of a batch did not wait for the long ones
    assert len({len(z.token_ids) for z in instructions}) > 1
    torch.manual_seed(0)
    assert teacher.sample(QUERIES, 4) == instructions


def test_no_queries_get_no_instructions(teacher: Teacher) -> None:
    assert teacher.sample([], 4) == []


def test_tokens_end_with_the_end_token_unless_the_limit_cut_them_off(teacher: Teacher) -> None:
    for instruction in sample(teacher, 10):
        *before, last = instruction.token_ids
        assert not set(before) & set(teacher.end_ids)
        assert (last in teacher.end_ids) is not instruction.truncated
        assert len(instruction.token_ids) == 12 or not instruction.truncated
        assert instruction.text == teacher.tokenizer.decode(instruction.token_ids, skip_special_tokens=True).strip()


def test_the_prompt_is_the_template_in_the_models_own_chat_format(tiny_model: str, tiny_plain_model: str) -> None:
    prompt = TeacherPrompt("Instruct: {query}", system="Be brief.")
    chat, plain = make(tiny_model, prompt=prompt), make(tiny_plain_model, prompt=prompt)
    assert chat.tokenizer.decode(chat.encode(QUERIES[2])) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nInstruct: user: Hello\n\nassistant: Yes?\n\n2 + 2 = ?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert plain.tokenizer.decode(plain.encode(QUERIES[0])) == "Be brief.\n\nInstruct: hi\n\n"


@pytest.mark.parametrize("limit", [60, 40])
@pytest.mark.parametrize("plain", [False, True])
def test_a_query_that_is_too_long_is_cut_with_a_counted_warning(
    tiny_model: str, tiny_plain_model: str, limit: int, plain: bool
) -> None:
    teacher = make(tiny_plain_model if plain else tiny_model, max_prompt_tokens=limit)
    whole = make(tiny_plain_model if plain else tiny_model).encode(Query("whole", "x" * 100))
    with pytest.warns(UserWarning, match=rf"query 'q' was cut .*max_prompt_tokens={limit}, and so will"):
        ids = teacher.encode(Query("q", "x" * 100))
    assert len(ids) <= limit
    assert ids[-2:] == whole[-2:]
    (instruction,) = teacher.sample([Query("r", "naïve 🙂" * 50)])
    assert teacher.encoder.shortened == 2
    assert len(instruction.prompt_ids) <= limit
    torch.testing.assert_close(sums(teacher, [instruction]), naive_sums(teacher.policy, [instruction]))


def test_a_query_that_fits_is_not_cut(tiny_model: str) -> None:
    exact = len(make(tiny_model).encode(QUERIES[1]))
    teacher = make(tiny_model, max_prompt_tokens=exact)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(teacher.encode(QUERIES[1])) == exact
    assert teacher.encoder.shortened == 0
