"""The result of `feature_reuse` as plain text, and the sentences that explain its numbers."""

from __future__ import annotations

from metalearn.analysis.networks.profile import corrected

from .converged import CRITERION
from .results import ReuseResult
from .tables import (
    accuracy_table,
    cca_table,
    class_table,
    counted,
    criteria_table,
    flat_settings,
    has_other_seed,
    seed_table,
    similarity_table,
    weight_table,
)
from .verdict import RULE

# How the numbers of the tables are measured.
CKA_CONVENTION = (
    "CKA: debiased linear, per task on the query images, every image flattened, {mean}."
)
CCA_CONVENTION = (
    "CCA: mean canonical correlation, channels as features and positions of the query images as"
    " examples (n in a task), per task as in Raghu et al. 2020, {mean}. CCA, pooled: sampled"
    " positions of all tasks together, for which one linear map must fit every task; not comparable"
    " with theirs."
)
CHANCE_CONVENTION = (
    "Chance: whole images (pooled: whole tasks) of one side shuffled, median and 95 %; {draws}."
)
OTHER_SEED_CONVENTION = (
    "Other seed: the same measures between this network and one trained from another seed, both"
    " before adaptation."
)
WEIGHT_CONVENTION = (
    "Move by: Euclidean norm of adapted minus initial weights, all weights of the layer together,"
    " mean over tasks. First gradient: norm of the gradient of the inner loss on the support set by"
    " the weights with a rate, at the meta-initialisation; 0 if none has a rate."
)
CLASS_CONVENTION = (
    "Cosine: mean cosine between the features of two query images of one class, and of two classes,"
    " within a task: every image flattened, not centred, n x d as for CKA; mean over tasks."
)


def text(reuse: ReuseResult) -> str:
    """The report of one learner as aligned plain text, the answer first."""
    parts = reuse.decomposition
    # The answer and its evidence, then what was analysed.
    blocks = [
        f"{reuse.name}: {reuse.verdict.answer}\n{reuse.verdict.evidence}",
        f"{described(reuse)}\n{_settings_line(reuse)}",
    ]
    # What the verdict rests on.
    if parts:
        blocks += [str(parts), str(parts.converged)]
    else:
        blocks.append(str(accuracy_table(reuse)))
    if reuse.freezing:
        blocks.append(str(reuse.freezing))
    # Layer by layer.
    tables = [similarity_table(reuse), cca_table(reuse)]
    if reuse.seeds:
        tables.append(seed_table(reuse))
    tables.append(weight_table(reuse))
    if reuse.ways:
        tables.append(class_table(reuse))
    if reuse.verdict.criteria:
        tables.append(criteria_table(reuse.verdict))
    blocks += [str(table) for table in tables]
    # What to know before believing the numbers, and how they are measured.
    blocks += [f"Note: {note}" for note in reuse.notes]
    explained = conventions(reuse)
    if parts:
        explained.append(CRITERION)
    blocks.append("\n".join([*explained, RULE]))
    return "\n\n".join(blocks)


def described(reuse: ReuseResult) -> str:
    """The tasks in words."""
    kind = f"{reuse.ways}-way {reuse.shots}-shot, {reuse.queries} queries per class"
    if not reuse.ways:
        kind = f"regression from {reuse.shots} examples, {reuse.queries} queries"
    seeds = f"mean over {counted(len(reuse.seeds), 'seed')}; " if reuse.seeds else ""
    norm = reuse.settings.get("norm", "not recorded")
    return f"{seeds}{counted(reuse.tasks, 'task')}, {kind}; normalisation: {norm}"


def _settings_line(reuse: ReuseResult) -> str:
    """Settings on one line; the normalisation is in `described`."""
    pairs = flat_settings(reuse.settings)
    return ", ".join(f"{key} {value}" for key, value in pairs if key != "norm")


def conventions(reuse: ReuseResult) -> list[str]:
    """How the numbers were measured, a paragraph for each kind."""
    mean = "± over tasks"
    if reuse.seeds:
        mean = "mean over tasks, then over seeds, ± over seeds"
    similarities = (CKA_CONVENTION, CCA_CONVENTION, CHANCE_CONVENTION)
    paragraphs = [" ".join(similarities).format(mean=mean, draws=_draws_in_words(reuse))]
    if has_other_seed(reuse):
        paragraphs.append(OTHER_SEED_CONVENTION)
    paragraphs.append(WEIGHT_CONVENTION)
    if reuse.ways:
        paragraphs.append(CLASS_CONVENTION)
    return paragraphs


def _draws_in_words(reuse: ReuseResult) -> str:
    """How often chance shuffled each measure, and what the p values are."""
    # Layers without a value have no draws.
    cka = max(layer.cka_floor.draws for layer in reuse.layers)
    cca = max(layer.cca_floor.draws for layer in reuse.layers)
    pooled = max(layer.cca_pooled_floor.draws for layer in reuse.layers)
    largest = ", the largest of any seed" if reuse.seeds else ""
    return f"draws: CKA {cka}, CCA {cca}, pooled {pooled}. p of CKA: {corrected(cka)}{largest}"
