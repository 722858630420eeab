"""RULER's eleven synthetic tasks, made here with the published parameters.

Hsieh et al. 2024, arXiv 2404.06654. Parameters, counts and metric are those of github.com/NVIDIA/RULER; words
come from `wonderwords`, as there. The prompts are worded anew, so figures compare the rows of one report, not
with published ones. What else differs: haystacks grow by the smallest step that there is, so prompts come
closer to the length asked for, essays are cut into sentences at their punctuation (RULER uses nltk), and the
example of `vt` takes at most a quarter of the length.
"""

from .niah import niah
from .task import Task
from .tracking import variable_tracking
from .words import common_words, frequent_words

TASKS: dict[str, Task] = {
    "niah_single_1": niah("repeat"),
    "niah_single_2": niah("essay"),
    "niah_single_3": niah("essay", values="uuids"),
    "niah_multikey_1": niah("essay", num_keys=4),
    "niah_multikey_2": niah("needle"),
    "niah_multikey_3": niah("needle", keys="uuids", values="uuids"),
    "niah_multivalue": niah("essay", num_values=4),
    "niah_multiquery": niah("essay", num_queries=4),
    "vt": variable_tracking(),
    "cwe": common_words(),
    "fwe": frequent_words(),
}
