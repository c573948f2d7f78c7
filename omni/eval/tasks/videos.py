"""Videos: Video-MME, LongVideoBench, MVBench, WorldSense, Daily-Omni. All are choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omni.eval import subtitles
from omni.eval.extract import LETTERS
from omni.eval.item import Item
from omni.eval.rows import items, letter_of, lettered, split_letters, video, within
from omni.eval.spec import Spec
from omni.eval.task import Task
from omni.eval.tasks.documents import LETTER

Row = Mapping[str, Any]
FOLDERS = {  # of MVBench's videos, by its parts
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_localization": "sta/sta_video",
    "moving_count": "clevrer/video_validation",
    "moving_direction": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "counterfactual_inference": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "fine_grained_pose": "nturgbd_convert",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "character_order": "perception/videos",
    "object_shuffle": "perception/videos",
    "state_change": "perception/videos",
    "action_count": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "scene_transition": "scene_qa/video",
    "action_antonym": "ssv2_video_mp4",
    "unexpected_action": "FunQA_test/test",
}


def _chosen(
    name: Any, clip: Mapping[str, Any], question: str, options: Sequence[str], truth: str, **groups: str
) -> Item:
    return Item(
        name=str(name),
        media=(clip,),
        fields={"question": question.strip(), "options": lettered(options)},
        truth=truth,
        options=tuple(options),
        groups=groups,
    )


def _video_mme(spec: Spec, index: int, row: Row) -> Item:
    clip = video(spec, (f"{row['videoID']}.mp4", f"{row['videoID']}.MP4", f"{row['videoID']}.mkv"))
    groups = {"duration": row["duration"], "domain": row["domain"], "type": row["task_type"]}
    return _chosen(row["question_id"], clip, row["question"], split_letters(row["options"]), row["answer"], **groups)


def _video_mme_told(spec: Spec, index: int, row: Row) -> Item:
    """With the subtitles, from an .srt file of the video's name; where there is none, the question says so."""
    item, which = _video_mme(spec, index, row), spec.options["subtitles"]
    if which not in ("all", "frames"):
        raise ValueError(f"spec: options.subtitles is {which!r}; want 'all' or 'frames'")
    folder = _subtitles(spec, "subtitle")
    lines, (clip,) = list[subtitles.Line](), item.media
    if (folder / f"{row['videoID']}.srt").is_file():
        lines = subtitles.from_srt(within(folder, f"{row['videoID']}.srt", ""))
    if which == "frames":
        chosen = subtitles.sampling(spec.preprocessing)
        clip = {**clip, "sampling": chosen}
        lines = subtitles.of_frames(lines, Path(clip["path"]), chosen)
    told = "\n".join(line.text for line in lines) or "No subtitles available"
    return replace(item, media=(clip,), fields={**item.fields, "subtitles": told})


def _subtitles(spec: Spec, name: str) -> Path:
    """The folder of the subtitles: as the options say, else of this name beside that of the videos."""
    folder = Path(spec.options["folder"] or Path(spec.source.media or spec.source.path).parent / name)
    if not folder.is_dir():
        raise ValueError(f"eval: {folder} is missing; options.folder names the folder of the subtitles")
    return folder


def _long_video_told(spec: Spec, index: int, row: Row) -> Item:
    """With the subtitles between the frames."""
    item, duration = _long_video(spec, index, row), float(row["duration"])
    hint = "options.folder names the folder of the subtitles"
    path = within(_subtitles(spec, "subtitles"), row["subtitle_path"], hint)
    lines = subtitles.from_json(path, float(row["starting_timestamp_for_subtitles"]), duration)
    times = subtitles.moments(spec.preprocessing, duration)
    return replace(item, media=tuple(subtitles.interleaved(item.media[0], lines, times)))


def _long_video(spec: Spec, index: int, row: Row) -> Item:
    """Options stand in columns option0 to option4; those that are missing say N/A."""
    listed = row.get("candidates") or [row.get(f"option{i}") for i in range(5)]
    options = [option for option in listed if option not in (None, "N/A")]
    clip = video(spec, (row["video_path"],))
    groups = {"duration": str(row["duration_group"]), "type": row["question_category"]}
    return _chosen(row["id"], clip, row["question"], options, LETTERS[int(row["correct_choice"])], **groups)


def _mvbench(spec: Spec, index: int, row: Row) -> Item:
    """The truth is an option's text. The videos of each part lie in a folder of their own."""
    part, name = spec.source.name or "", row["video"]
    folder = FOLDERS.get(part, "")
    clip = video(spec, (f"{folder}/{name}", f"data0613/{folder}/{name}", name))
    options = list(row["candidates"])
    return _chosen(f"{part} {index}", clip, row["question"], options, letter_of(options, row["answer"]), part=part)


def _worldsense(spec: Spec, index: int, row: Row) -> Item:
    clip = video(spec, (row.get("video_path") or f"{row['video']}.mp4",))
    groups = {"domain": row["task_domain"], "type": row["task_type"], "duration": row["duration"]}
    return _chosen(row["index"], clip, row["question"], split_letters(row["candidates"]), row["answer"], **groups)


def _daily_omni(spec: Spec, index: int, row: Row) -> Item:
    name = row["video_id"]
    clip = video(spec, (f"{name}/{name}_video.mp4", f"{name}.mp4"))
    groups = {"type": row["Type"], "duration": row["video_duration"]}
    return _chosen(index, clip, row["Question"], split_letters(row["Choice"]), row["Answer"], **groups)


TOLD = (
    "This video's subtitles are listed below:\n{subtitles}\nSelect the best answer to the following multiple-choice "
    "question based on the video and the subtitles. Respond with only the letter (A, B, C, or D) of the correct option."
    "\n{question}\n{options}\nThe best answer is:"
)
ASKED = ("question", "candidates", "answer")
VIDEO_MME = ("videoID", "question_id", "question", "options", "answer", "duration", "domain", "task_type")
LONG_VIDEO = ("id", "video_path", "question", "correct_choice", "duration_group", "question_category")
TASKS = (
    Task(
        name="videomme",
        about="clips of seconds to an hour, without subtitles; choice",
        items=items(_video_mme, VIDEO_MME),
        rule="choice",
        prompt=LETTER,
        source={"path": "lmms-lab/Video-MME", "split": "test", "media": "data"},
    ),
    Task(
        name="videomme_subtitles",
        about="Video-MME with subtitles. subtitles: all, or frames (what is said while a sampled frame is seen; "
        "preprocessing states the frames); folder: of the .srt files, else `subtitle` beside the videos' folder",
        items=items(_video_mme_told, VIDEO_MME),
        rule="choice",
        prompt=TOLD,
        source={"path": "lmms-lab/Video-MME", "split": "test", "media": "data"},
        options={"subtitles": "all", "folder": ""},
    ),
    Task(
        name="longvideobench",
        about="what is referred to in long clips, without subtitles; choice",
        items=items(_long_video, LONG_VIDEO),
        rule="choice",
        prompt=LETTER,
        source={"path": "longvideobench/LongVideoBench", "split": "validation", "media": "videos"},
    ),
    Task(
        name="longvideobench_subtitles",
        about="LongVideoBench with subtitles between the frames, by time, and without sound. preprocessing.frames: at "
        "most so many, one a second; folder: of the subtitles, else `subtitles` beside the videos' folder",
        items=items(_long_video_told, (*LONG_VIDEO, "subtitle_path", "starting_timestamp_for_subtitles", "duration")),
        rule="choice",
        prompt=LETTER,
        source={"path": "longvideobench/LongVideoBench", "split": "validation", "media": "videos"},
        shown={"frames": 64},
        options={"folder": ""},
    ),
    Task(
        name="mvbench",
        about="one of twenty parts (source.name) on change over time; choice",
        items=items(_mvbench, ("video", *ASKED)),
        rule="choice",
        prompt=LETTER,
        source={"path": "OpenGVLab/MVBench", "name": "action_sequence", "split": "train", "media": "video"},
    ),
    Task(
        name="worldsense",
        about="sound and picture together; choice",
        items=items(_worldsense, ("index", *ASKED, "task_domain", "task_type", "duration")),
        rule="choice",
        prompt=LETTER,
        source={"path": "lmms-lab/WorldSense", "split": "test", "media": "videos"},
    ),
    Task(
        name="dailyomni",
        about="sound and picture of daily life in time; choice",
        items=items(_daily_omni, ("Question", "Choice", "Answer", "video_id", "Type", "video_duration")),
        rule="choice",
        prompt=LETTER,
        source={"path": "liarliar/Daily-Omni", "split": "train", "media": "Videos"},
    ),
)
