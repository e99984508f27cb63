"""Probers of the doctor that start no child process."""

from collections.abc import Callable
from typing import Any

from image_classification.core.errors import UserError
from image_classification.doctor.checks import Context
from image_classification.doctor.probe import ProbeError, Prober, one_line


class InProcessProber(Prober):
    """Calls probes in this process."""

    def call(self, function: Callable[..., Any], *arguments: Any, limit_s: float) -> Any:
        try:
            return function(*arguments)
        except UserError as error:
            raise ProbeError(error.message, is_user_error=True) from error
        except Exception as error:
            raise ProbeError(one_line(error)) from error


class ScriptedProber(Prober):
    """Returns the given answers in order, or raises them; repeats the last."""

    def __init__(self, *answers: Any) -> None:
        super().__init__()
        self.answers = list(answers)

    def call(self, function: Callable[..., Any], *arguments: Any, limit_s: float) -> Any:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def context(*answers: Any, **options: Any) -> Context:
    """Return a context whose probes give ``answers``; without any, they run in this process."""
    prober = ScriptedProber(*answers) if answers else InProcessProber()
    return Context(**options, prober=prober)
