"""The prompt format of a task's rows, so that other prompts are asked in the same way."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from jaxlm.data.documents import Document, Pair, RowError, Text
from jaxlm.data.examples import Example
from jaxlm.data.sources.formats import RowFormat, read_row


@dataclass(frozen=True)
class Asking:
    """The prompt format of most rows of a task.

    Attributes:
        format: What their columns mean; as `DataConfig.format`, but for ``auto``.
        spaced: Whether a completion begins with white space, so that nothing stands between the prompt and it.
    """

    format: str = "prompt-completion"
    spaced: bool = False

    def document(self, prompt: str, system: str | None = None, *, template: bool) -> Document:
        """Returns a prompt as a row whose answer is still to come; running text is what is to be continued.

        Args:
            prompt: What is asked.
            system: What the system says before it.
            template: Whether the chat template writes it.

        Raises:
            RowError: Running text has no system turn.
        """
        if self.format == "text":
            if system is not None:
                raise RowError("a system prompt before running text, expected it to be part of the prompt")
            return Text(prompt)
        answer = " -" if self.spaced else "-"
        if self.format == "alpaca":
            row = {"instruction": prompt, "output": answer, "system": system}
        else:
            row = {"prompt": prompt, "completion": answer, "system": system}
        return read_row(row, RowFormat(), template=template).document


def asking_of(examples: Sequence[Example]) -> Asking:
    """Returns how most of the examples ask."""
    format = Counter(example.format for example in examples).most_common(1)[0][0]
    completions = [example.document.completion for example in examples if isinstance(example.document, Pair)]
    spaced = sum(completion[:1].isspace() for completion in completions)
    return Asking(format, 2 * spaced > len(completions))
