"""The recipe of `pipo data build`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipo.decoding.options import Sampling
from pipo.runtime.recipe import Section


class QuestionSource(Section):
    """What is asked (`pipo.data.build.questions` has the schemas)."""

    source: str = Field(description="hub id, or a local .jsonl, .json, .csv or .parquet file")
    format: Literal["math", "code", "prompts", "dapo", "codeforces"] = Field(
        default="math", description="the rows' schema, and how answers are checked; prompts are not checked"
    )
    config: str | None = Field(default=None, description="the hub's configuration")
    split: str = Field(default="train", description="the hub's split")
    limit: int | None = Field(default=None, ge=1, description="questions, from the beginning")


class Answerer(Section):
    """Who answers: a model behind an OpenAI-compatible endpoint, or a local one."""

    model: str = Field(description="its name at the endpoint; without one, a folder or hub id")
    endpoint: str | None = Field(default=None, description="e.g. http://localhost:8000/v1 of vLLM")
    api_key_env: str = Field(default="OPENAI_API_KEY", description="the environment variable that holds the key")
    concurrency: int = Field(default=64, ge=1, description="requests at a time")
    retries: int = Field(default=20, ge=0, description="of a request that fails for a passing reason, with back-off")
    timeout: float = Field(default=7200, gt=0, description="seconds for one answer")
    batch_size: int = Field(default=8, ge=1, description="answers at a time of a local model")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(default="auto", description="of a local model")
    device: str = Field(default="auto", description="of a local model: cpu, cuda, cuda:1, ...")


class Answers(Sampling):
    """How the teacher answers."""

    samples: int = Field(default=4, ge=1, description="answers to each question")
    max_tokens: int = Field(default=32768, ge=1, description="longest answer; longer ones are unfinished")
    thinking: bool | None = Field(default=None, description="the chat template's enable_thinking")
    prefix: str = Field(default="", description="put before answers that lack it: what the prompt held, '<think>\\n'")


class Checks(Section):
    """How answers are checked."""

    workers: int = Field(default=4, ge=1, description="programs run at a time")
    seconds: float = Field(default=10.0, gt=0, description="CPU time of a program on one test, where none is given")
    memory_mib: int = Field(default=1024, ge=64, description="of a program, at least")


class Selection(Section):
    """What is kept."""

    share: float = Field(default=0.9, gt=0, lt=1, description="of the questions, the first, for the SFT set")
    sft: Literal["all", "shortest"] = Field(default="all", description="correct and finished answers of a question")
    min_accuracy: float = Field(default=0.5, ge=0, le=1, description="of the teacher on a prompt for distillation")


class BuildRecipe(Section):
    """`pipo data build`."""

    output: str = Field(description="folder to write, or to go on with")
    questions: QuestionSource
    teacher: Answerer
    answers: Answers = Answers()
    checks: Checks = Checks()
    select: Selection = Selection()
    seed: int = Field(default=0, ge=0, lt=2**32, description="of the answers' draws")

    @model_validator(mode="after")
    def _local_or_not(self) -> BuildRecipe:
        endpoint = {"api_key_env", "concurrency", "retries", "timeout"}
        local = {"batch_size", "dtype", "device"}
        wrong = self.teacher.model_fields_set & (endpoint if self.teacher.endpoint is None else local)
        if wrong:
            where = "an endpoint" if self.teacher.endpoint is None else "a local model"
            raise ValueError(f"teacher.{min(wrong)}: is an option of {where}, leave it out")
        return self
