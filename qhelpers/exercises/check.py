"""The verdict on an exercise, with a hint if it isn't right yet, and how many are solved."""

from importlib import import_module
from pathlib import Path
from types import FunctionType

from qhelpers.exercises.answers import Wrong

FILES = sorted(Path(__file__).parent.glob("notebook_*.py"))
NOTEBOOKS = [import_module(f"qhelpers.exercises.{path.stem}") for path in FILES]
CHECKS = {exercise: function for each in NOTEBOOKS for exercise, function in each.CHECKS.items()}
RIGHT = "right."
SOLVED = set()  # as long as the kernel runs


def check(exercise, *answers):
    """Print whether the answers to an exercise are right.

    exercise: its number; "1.2" is the second exercise of notebook 1.
    answers: what the exercise asks for. While one of them is still `...`, or a function that
        holds nothing else, the exercise counts as not tried yet.

    The verdict is one printed line, even if an answer is of the wrong type or raises an error.
    After the last exercise of a notebook, a second line says how many are solved.
    Raises ValueError if there is no such exercise, TypeError if the number of answers is wrong.
    """
    if exercise not in CHECKS:
        raise ValueError(f"exercise is {exercise!r}; there are {', '.join(CHECKS)}")
    function = CHECKS[exercise]
    if len(answers) != function.__code__.co_argcount:
        raise TypeError(f"exercise {exercise} takes {function.__code__.co_argcount} answers")
    told = verdict(function, answers)
    if told == RIGHT:
        SOLVED.add(exercise)
    print(f"Exercise {exercise}: {told}")
    for notebook in NOTEBOOKS:
        if exercise == [*notebook.CHECKS][-1]:
            print(solved(notebook))


def progress():
    """Print for each notebook how many of its exercises were solved since the kernel started."""
    for number, notebook in enumerate(NOTEBOOKS, 1):
        print(f"Notebook {number}: {solved(notebook)}")


def solved(notebook):
    """Return how many exercises of a notebook are solved, and which are left, as text."""
    left = [exercise for exercise in notebook.CHECKS if exercise not in SOLVED]
    count = f"{len(notebook.CHECKS) - len(left)} of {len(notebook.CHECKS)} solved"
    return f"{count}; left: {', '.join(left)}." if left else f"{count}."


def verdict(function, answers):
    """Return what `function`, one of CHECKS, says of the answers, as text."""
    if any(untouched(answer) for answer in answers):
        return "not tried yet."
    try:
        function(*answers)
    except Wrong as hint:
        return f"not right yet. {hint}"
    except Exception as error:  # the reader's code may raise anything
        return f"not right yet. It raises {type(error).__name__}: {error}"
    return RIGHT


def untouched(answer):
    """Whether an answer is still `...`, or a function whose body is."""
    if isinstance(answer, FunctionType):
        code, empty = answer.__code__, (lambda: None).__code__
        return (code.co_code, code.co_consts) == (empty.co_code, empty.co_consts)
    return answer is ...
