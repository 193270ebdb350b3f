"""Whether every setting of a card has an effect beside the others."""

from collections.abc import Iterator

from edgekd.card import Card, Data, Student, Teacher, is_published
from edgekd.errors import ConfigError
from edgekd.recipe import Term, Training

__all__ = ["check_card"]


def check_card(card: Card) -> Card:
    """Return the card if all its settings have an effect. Otherwise raise ConfigError for the first unused setting,
    with the reason."""
    trainings = {"teacher.training": card.teacher.training}
    trainings |= {f"assistants.{number}.training": one.training for number, one in enumerate(card.assistants)}
    for where, training in trainings.items():
        for problem in training.unused_settings() if training else ():
            raise ConfigError(f"{card.file}: {where}.{problem}")
    for problem in card.recipe.unused_settings(_learnt_by_others(card)):
        raise ConfigError(f"{card.file}: recipe.{problem}")
    if card.export.resize and (not isinstance(card.data, Data) or card.data.source in ("digits", "import")):
        given = f'with source = "{card.data.source}"' if isinstance(card.data, Data) else f"for {card.task}"
        raise ConfigError(f"{card.file}: export.resize: has no effect {given}; it is for image files of any size")
    if card.export.nms and card.task != "detection":
        raise ConfigError(f"{card.file}: export.nms: has no effect for {card.task}; it is for detection")
    own = card.teacher.training if card.teacher.family == "ssdlite" else None
    if own is not None and own.class_weights != "none":
        raise ConfigError(
            f"{card.file}: teacher.training.class_weights: has no effect; torchvision's loss of ssdlite has none"
        )
    for problem in (*_unused_teacher_settings(card), *_unused_weights_settings(card)):
        raise ConfigError(f"{card.file}: {problem}")
    return card


def _learnt_by_others(card: Card) -> set[Term]:
    """The loss terms of networks other than the student that are trained with the recipe's settings: assistants (plain
    KD if the recipe has no term for them), and a teacher that has the student's own network."""
    found: set[Term] = {"ce", "kd"} if card.assistants else set()
    if card.teacher.family == "self" and card.teacher.training is None:
        found.add("ce")
    return found


def _unused_teacher_settings(card: Card) -> Iterator[str]:
    """Yield each unused setting about further teachers and assistants, with the reason."""
    if card.teacher.family == "self" and card.teacher.shape:
        yield 'teacher.shape: has no effect; family = "self" is the student\'s own network, of the shape that is chosen'
    for number, one in enumerate(card.more_teachers):
        if one.training is not None:
            yield f"more_teachers.{number}.training: has no effect; a further teacher comes with its weights"
    for number, one in enumerate(card.assistants):
        if one.weights:
            yield f"assistants.{number}.weights: has no effect; assistants are trained, each by the one before it"
    for where in ("more_teachers", "assistants"):
        for number, one in enumerate(getattr(card, where)):
            if one.attempts != Teacher.attempts:
                yield f"{where}.{number}.attempts: has no effect; it is for [teacher]"
    if card.recipe.combine != "mean" and not card.more_teachers:
        yield "recipe.combine: has no effect here; it needs [[more_teachers]]"


def _unused_weights_settings(card: Card) -> Iterator[str]:
    """Yield each setting about weights to start from that has no effect or contradicts another one, with the reason."""
    factor = "loaded_learning_rate_factor"
    trainings: list[tuple[str, Training | None]] = [("recipe", card.recipe if not card.student.weights else None)]
    trainings += [(f"assistants.{number}.training", one.training) for number, one in enumerate(card.assistants)]
    for where, training in trainings:
        if training is not None and getattr(training, factor) != getattr(Training, factor):
            needs = "it needs student.weights" if where == "recipe" else "assistants are trained from new"
            yield f"{where}.{factor}: has no effect; {needs}"
    if card.teacher.weights.lower().endswith(".onnx") and card.teacher.training is not None:
        yield "teacher.training: has no effect; an ONNX model is used as it is and cannot be fine-tuned"
    owners: list[tuple[str, Teacher | Student]] = [("teacher", card.teacher), ("student", card.student)]
    owners += [(f"more_teachers.{number}", one) for number, one in enumerate(card.more_teachers)]
    owners += [(f"assistants.{number}", one) for number, one in enumerate(card.assistants)]
    for where, owner in owners:
        if is_published(owner.weights) and owner.family not in ("torchvision", "timm"):
            yield f'{where}.weights: only the families torchvision and timm have published weights ("pretrained")'
        elif owner.download and not is_published(owner.weights):
            yield f'{where}.download: has no effect; it is for weights = "pretrained"'
    if card.student.weights and card.recipe.init_from_teacher:
        yield "recipe.init_from_teacher: cannot be combined with student.weights; both say where the student starts"
    if card.student.weights and card.teacher.family == "self":
        yield (
            'student.weights: cannot be combined with teacher.family = "self"; name the same family, shape and weights '
            "in [teacher], with [teacher.training]"
        )
