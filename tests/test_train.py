"""Training's laws: a stage resumes exactly, parts learn, and what is trained is what is loaded."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path
from random import Random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

import omni
from omni.cli import app
from omni.model import OmniModel
from omni.train import mixture, ranks
from omni.train.binding import ASKED, Charts, seen
from omni.train.data.example import Example, Picture
from omni.train.data.page import CLEAR
from omni.train.data.sounds import Mute
from omni.train.drafting import losses_ahead
from omni.train.exam import edits, exact, near, score, word_edits
from omni.train.joining import Joined, bound_of, charts_among, watched
from omni.train.language import Balancer, Knowing, answers, right_answers
from omni.train.loop import Run, Schedule, freeze
from omni.train.milestone import MILESTONE, STAGE, keep, restore
from omni.train.muon import orthogonal
from omni.train.packing import Packer
from omni.train.recipe import BESIDE, SMOKE, STAGES, Recipe, export, tiny
from omni.train.shape import tiny_config


def objective(module: nn.Linear):
    def losses(step: int) -> dict[str, Tensor]:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return {"loss": (module(x) - x).square().mean()}

    return losses


def test_a_run_that_stops_and_resumes_ends_where_an_uninterrupted_one_ends(tmp_path: Path) -> None:
    def fresh(name: str) -> Run:
        torch.manual_seed(0)
        return Run(nn.Linear(4, 4), Schedule(steps=12, warmup=3), tmp_path / name, "stage")

    whole = fresh("whole")
    whole.train(objective(whole.module), quiet=True)  # pyright: ignore[reportArgumentType]  (a linear)
    first = fresh("parts")
    for _ in range(5):
        first.advance(objective(first.module))  # pyright: ignore[reportArgumentType]  (a linear)
    first.save()
    second = fresh("parts")
    assert second.resume()
    assert second.step == 5
    second.train(objective(second.module), quiet=True)  # pyright: ignore[reportArgumentType]  (a linear)
    for a, b in zip(whole.module.parameters(), second.module.parameters(), strict=True):
        assert a.equal(b)


def test_a_gradient_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path: Path) -> None:
    run = Run(nn.Linear(4, 4), Schedule(steps=2), tmp_path, "stage")
    with pytest.raises(FloatingPointError, match="stage, step 0"):
        run.advance(lambda _step: {"loss": run.module.weight.sum() * float("nan")})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("shape", [(6, 6), (5, 9), (9, 5), (3, 4, 6)])
def test_an_orthogonal_update_has_singular_values_near_one(shape: tuple[int, ...]) -> None:
    made = orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(1)), steps=8)
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_only_chosen_parts_learn() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    freeze(module, [module[1]])
    assert [p.requires_grad for p in module.parameters()] == [False, False, True, True]


@pytest.fixture(scope="module")
def knowing() -> Knowing:
    torch.manual_seed(0)
    return Knowing(tiny_config())


def test_router_biases_move_towards_even_loads(knowing: Knowing) -> None:
    balancer = Balancer(knowing.model.backbone)
    packed = Packer(drawn=False)([mixture.makers(Mute(), drawn=False)["line"](Random(1)) for _ in range(4)])
    knowing.train()
    logits, targets, _, _ = answers(knowing.model, packed, knowing.stand_in(packed.known))
    F.cross_entropy(logits, targets).backward()
    seen = list(balancer.seen)
    before = [router.e_score_correction_bias.clone() for router, _, _ in seen]
    assert balancer.loss() > 0.9
    balancer.step()
    for (router, chosen, _), old in zip(seen, before, strict=True):
        load = chosen.flatten().bincount(minlength=router.config.experts).float()
        assert ((router.e_score_correction_bias - old).sign() == (load.mean() - load).sign()).all()


def test_right_answers_are_counted_by_skill() -> None:
    logits = F.one_hot(torch.tensor([3, 4, 5, 6]), 8).float()
    found = right_answers(logits, torch.tensor([3, 4, 5, 7]), torch.tensor([2, 3, 7, 8]), ("a", "b"))
    assert found == {"a": [True], "b": [False]}


def test_a_draft_learns_what_stands_further_ahead(knowing: Knowing) -> None:
    """With a perfect hidden state the targets are those k + 1 tokens on, and none beyond a sequence's end."""
    model = knowing.model.eval()
    tokens, lengths = torch.randint(32, 200, (12,)), (7, 5)
    hidden = torch.randn(12, tiny_config().backbone.width)
    learnt = torch.ones(12, dtype=torch.bool)
    with torch.no_grad():
        whole = losses_ahead(model, tokens, hidden, lengths, learnt)
        parts = [losses_ahead(model, t, h, (len(t),), torch.ones(len(t), dtype=torch.bool))
                 for t, h in zip(tokens.split(list(lengths)), hidden.split(list(lengths)), strict=True)]  # fmt: skip
    for k in range(len(whole)):
        counts = [max(0, length - k - 2) for length in lengths]
        mean = sum(float(part[k][0]) * n for part, n in zip(parts, counts, strict=True)) / sum(counts)
        assert float(whole[k][0]) == pytest.approx(mean, rel=1e-4)


def test_marks_are_what_a_person_would_give() -> None:
    assert exact(" 12.50\n", "12.50") == (1.0, 1.0)
    assert exact("12.5", "12.50") == (0.0, 1.0)
    assert edits("abd", "abc") == (1.0, 3.0)
    assert word_edits("one three", "one two three") == (1.0, 3.0)
    assert near("3.50 seconds", "3.00 seconds", 0.5) == (1.0, 1.0)
    assert near("soon", "3.00 seconds") == (0.0, 1.0)


def test_an_interval_holds_the_value_and_narrows_with_more_questions() -> None:
    few, many = (score("x", [(1.0, 1.0), (0.0, 1.0)] * n) for n in (10, 200))
    assert few.low <= few.value <= few.high
    assert many.high - many.low < few.high - few.low
    assert score("all", [(1.0, 1.0)] * 5).low == 1.0


def test_the_recipe_runs_from_drawn_pages_to_a_checkpoint_that_loads(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader", reason="needs the train extra's voices")
    recipe = Recipe(folder=tmp_path / "tiny", sizes=SMOKE, quiet=True, out=tmp_path / "model")
    tiny(recipe)
    model, processor = omni.load(recipe.out, dtype=torch.float32)
    batch = processor([{"role": "user", "content": "What is 2 + 2?"}], enable_thinking=False)
    assert model(batch).logits.isfinite().all()
    lines = [json.loads(line) for line in (recipe.folder / "log.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {
        "language", "vision tower", "audio tower", "projection", "binding", "together", "drafting"
    }  # fmt: skip
    assert any("exact document" in line for line in lines)
    again = Recipe(folder=recipe.folder, sizes=SMOKE, quiet=True, out=tmp_path / "again")
    again.export()
    one, two = ((path / "model.safetensors").read_bytes() for path in (recipe.out, again.out))
    assert one == two


def test_lists_of_a_chart_tell_each_value_once_and_in_order() -> None:
    made = mixture.makers(Mute(), drawn=False, turns=99, shown=99)["chart"]
    for seed in range(20):
        example = made(Random(f"list {seed}"))
        values, ranked = (turn.answer.split(", ") for turn in example.lists[:2])
        amounts = {row.rsplit(" ", 1)[0]: int(row.rsplit(" ", 1)[1].rstrip("%")) for row in values}
        assert sorted(amounts) == sorted(ranked)
        assert [amounts[name] for name in ranked] == sorted(amounts.values(), reverse=True)
        told = {turn.answer for turn in example.turns if turn.question == "Which is the largest?"}
        assert told <= {ranked[0]}
    assert len(mixture.listed(Random(0), example, 1.0).turns) == len(example.turns) + 1
    assert mixture.listed(Random(0), example, 0.0) is example


def test_what_belongs_together_in_a_chart_is_told_by_its_patches() -> None:
    made = mixture.makers(Mute(), how=CLEAR)["chart"]
    for seed in range(10):
        picture = made(Random(f"bound {seed}")).media[0]
        assert isinstance(picture, Picture)
        assert picture.bound is not None
        assert picture.bound.shape[:2] == picture.fields.shape[:2]
        rank, halves, colour, last = picture.bound.reshape(-1, 4).T
        ranks = set(rank.tolist()) - {0}
        assert ranks == set(range(1, 1 + len(ranks)))
        for one in ranks:  # name, value and bar say the same
            mine = rank == one
            assert len(set(halves[mine].tolist())) == len(set(colour[mine].tolist())) == 1
            assert picture.fields.reshape(-1, picture.fields.shape[-1])[mine, 0].any()  # a name's characters
            assert set(last[mine].tolist()) == {1 + len(ranks) - one}
        assert not colour[rank == 0].any()


@torch.no_grad()
def test_the_tower_alone_sees_what_it_sees_in_the_model() -> None:
    torch.manual_seed(0)
    joined = Joined().eval()
    made = mixture.makers(Mute(), turns=1)
    media = [medium for name in ("chart", "video", "small document") for medium in made[name](Random(2)).media]
    packed = Packer(drawn=True)([Example(skill="", turns=ASKED, media=tuple(media))])
    with watched(joined.model.vision_norm) as found:
        joined.model.encode(packed.batch.media)
    torch.testing.assert_close(seen(joined, packed.batch.media), found[0])
    assert len(bound_of(packed.known)) == int(charts_among(packed.known).sum()) > 0


def test_charts_are_looked_at_several_times_and_a_run_that_resumes_sees_the_same() -> None:
    whole, late = Charts(400, 1), Charts(400, 1)
    for step in range(3):
        found = whole.some(step)
    again = late.some(2)
    assert [picture.fields.tobytes() for picture in found] == [picture.fields.tobytes() for picture in again]
    assert sum(picture.fields.shape[0] * picture.fields.shape[1] for picture in found) >= 400
    drawn = {id(chart) for few in whole.kept for chart in few}
    assert {id(picture) for picture in found} <= drawn


def test_the_help_names_every_stage() -> None:
    told = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).output
    listed = set(re.findall(r"\w+", told[told.index("--stage") : told.index("--folder")]))
    assert listed >= set(STAGES | BESIDE)


def test_an_unknown_stage_and_a_missing_one_before_it_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'sleeping' is unknown"):
        tiny(Recipe(folder=tmp_path), "sleeping")
    with pytest.raises(ValueError, match=r"language\.pt is missing"):
        tiny(Recipe(folder=tmp_path), "projection")


def test_a_milestone_goes_on_from_the_shipped_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    joined = Joined()
    run = Run(joined, Schedule(steps=9), tmp_path / "here", "together")
    run.step, run.seconds = 5, 7.0
    run.save()
    keep(tmp_path / "here", tmp_path / "kept")
    export(Joined().model, tmp_path / "shipped")  # another model: weights come from there
    assert restore(tmp_path / "there", tmp_path / "shipped", tmp_path / "kept")
    assert not restore(tmp_path / "there", tmp_path / "shipped", tmp_path / "kept")  # what is there stays
    other = Run(Joined(), Schedule(steps=9), tmp_path / "there", "together")
    assert other.resume()
    assert (other.step, other.seconds) == (5, 7.0)
    assert isinstance(other.module, Joined)
    torch.testing.assert_close(other.module.head.weight, joined.head.weight, atol=1e-2, rtol=1e-2)
    shipped = OmniModel.from_pretrained(tmp_path / "shipped", torch.float32)
    assert torch.equal(other.module.model.head.weight, shipped.head.weight)
    assert (MILESTONE / f"{STAGE}.safetensors").is_file()  # what a new machine goes on from
    with pytest.raises(ValueError, match="run the stage together first"):
        keep(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is missing; begin with"):
        restore(tmp_path / "elsewhere", tmp_path / "shipped", tmp_path / "nowhere")


def _one_of_two(number: int, folder: str) -> None:
    os.environ |= {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    torch.set_num_threads(1)
    ranks.join()
    torch.manual_seed(0)
    run = Run(nn.Linear(4, 4), Schedule(steps=3, warmup=1), Path(folder), "stage")
    run.train(lambda step: halves(run.module, step)[number], quiet=True)
    torch.distributed.destroy_process_group()


def halves(module: nn.Module, step: int) -> list[dict[str, Tensor]]:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
    return [{"loss": (module(part) - part).square().mean()} for part in x.chunk(2)]


def test_two_processes_take_the_step_that_one_takes_on_all_their_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path / "two"),), nprocs=2)
    torch.manual_seed(0)
    alone = Run(nn.Linear(4, 4), Schedule(steps=3, warmup=1), tmp_path / "one", "stage")

    def both(step: int) -> dict[str, Tensor]:
        first, second = halves(alone.module, step)
        return {"loss": (first["loss"] + second["loss"]) / 2}

    alone.train(both, quiet=True)
    together = torch.load(tmp_path / "two" / "stage.pt", weights_only=True)["module"]
    for name, value in alone.module.state_dict().items():
        torch.testing.assert_close(together[name], value)
    assert len((tmp_path / "two" / "log.jsonl").read_text().splitlines()) == 1
