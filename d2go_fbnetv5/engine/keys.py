"""The table of configuration keys: a new key is a row here and its reader.

Names, types and defaults of keys that Detectron2, D2Go or one of their projects has are theirs, so that one YAML file
means the same under every trainer; only keys that our own reads are listed. What the rows say of single keys,
`engine.validate` says of several. docs/configuration.md is written from them.
"""

import re
from collections.abc import Mapping
from typing import Any

from d2go_fbnetv5.arch import list_families
from d2go_fbnetv5.arch.cost import METRICS
from d2go_fbnetv5.arch.topology import MOST_STAGES
from d2go_fbnetv5.engine.precision import DTYPES, FLOAT32_PRECISIONS
from d2go_fbnetv5.engine.schedule import SCHEDULES
from d2go_fbnetv5.search import ALGORITHMS
from d2go_fbnetv5.tasks import list_tasks
from d2go_fbnetv5.utils.formatting import MOST_PIXELS, is_number
from d2go_fbnetv5.utils.rules import (
    FILE,
    FOLDER,
    OPEN,
    SWITCH,
    TEXT,
    TEXTS,
    Key,
    Rule,
    between,
    list_of,
    one_known,
    one_of,
    table,
)

MOST_ITERATIONS = (
    10**8
)  # the paper's longest training takes 22 million on a single GPU; what exceeds it is a slip
_SIDES = f"1 to {MOST_PIXELS}"

# Kinds of runs that do not read every key; a recipe says which of them it is.
SEARCH = ("searches",)
MODEL = ("models",)
CLASSIFIER = ("classifiers",)


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MOST_PIXELS


def _is_rising(steps: Any) -> bool:
    return all(type(step) is int and step > 0 for step in steps) and list(steps) == sorted(set(steps))


def _is_factors(entry: Any) -> bool:
    return isinstance(entry, Mapping) and all(is_number(factor) and factor > 0 for factor in entry.values())


def _is_share(area: Any) -> bool:
    return not area or (len(area) == 2 and all(map(is_number, area)) and 0 < area[0] <= area[1] <= 1)


def _is_tasks(tasks: Any) -> bool:
    return bool(tasks) and len(set(tasks)) == len(tasks) and all(name in list_tasks() for name in tasks)


def _is_group(names: Any) -> bool:
    return isinstance(names, (list, tuple)) and bool(names) and all(isinstance(name, str) for name in names)


COLOUR = list_of(
    "three numbers of 0 to 255, for R, G, B", lambda value: is_number(value) and 0 <= value <= 255, 3, 3
)
DEVIATION = list_of(
    "three numbers above 0 up to 255", lambda value: is_number(value) and 0 < value <= 255, 3, 3
)
SIDES = list_of(f"one or more sides of {_SIDES} pixels", _is_side, 1)
POSITIVE = list_of("two numbers above 0", lambda value: is_number(value) and value > 0, 2, 2)
BETAS = list_of(
    "two numbers of 0 or more and below 1", lambda value: is_number(value) and 0 <= value < 1, 2, 2
)
FACTORS = list_of("a list of mappings, each of a part of weights' names to a factor above 0", _is_factors)
SOME_NAMES = Rule("one or more names of data sets", bool, texts=True)
ONE_NAME = Rule("the name of one data set", lambda names: len(names) == 1, texts=True)
CROP_SIZE = list_of(f"[height, width] in whole pixels, {_SIDES}", _is_side, 2, 2)  # where it is absolute
COST_SIZE = list_of("[height, width], or [] for the family's own", is_number, 0, 2)
DEVICE = Rule("cpu, cuda", lambda name: re.fullmatch(r"(cpu|cuda)(:\d{1,2})?", name) is not None)
TASK_GROUPS = list_of("a list of lists of tasks' names, [[cls, det, seg]]", _is_group)
SOME_TASKS = Rule(lambda: f"one or more of {', '.join(list_tasks())}, each once", _is_tasks, texts=True)

# fmt: off
IMPORT_KEYS = table((
    Key("IMPORTS", [], TEXTS,
        "Modules of your own to import first, which register tasks, readers, families, teachers or formats; their code"
        " runs."),
    Key("IMPORT_FOLDERS", [], TEXTS,
        "Where IMPORTS are looked for besides the current folder; the configuration file's own folder is added."),
))

KEYS = IMPORT_KEYS | table((
    Key("VERSION", 2, one_of(2), "The version of Detectron2's keys that a file is written in."),
    Key("OUTPUT_DIR", "./output", FOLDER, "The folder that the run leaves everything in."),
    Key("SEED", -1, Rule("a whole number"),
        "What all random numbers depend on; below 0 one is drawn, and kept in the run's config.yaml."),
    Key("CUDNN_BENCHMARK", False, SWITCH, "Whether cuDNN tries its algorithms and keeps the fastest."),
    Key("FLOAT32_PRECISION", "", one_of("", *FLOAT32_PRECISIONS),
        "How a GPU multiplies float32: highest, or by TF32 (high, medium); empty: torch's own choice, TF32 in"
        " convolutions alone."),
    Key("WRITER_PERIOD", 20, between(1), "Every how many iterations losses and rates are recorded."),
    Key("DISTRIBUTED.TIMEOUT_MINUTES", 60.0, between(over=0, most=10080),
        "How long a process waits for another one before the run ends and says so; process 0 may have more to evaluate"
        " or to write than the others, so it is not to be short."),

    Key("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", TEXT,
        "The kind of run: MultitaskSearch, a model of one task (ImageClassifier, LiteRCNN, LiteMaskFormer, LiteDepth),"
        " or SeveralHeads, which has those of several tasks on one backbone."),
    Key("MODEL.DEVICE", "cuda", DEVICE,
        "What the run computes on; cuda is each process' own GPU, cuda:1 a certain one."),
    Key("MODEL.WEIGHTS", "", FILE,
        "A checkpoint to start from, of this or of another kind of run; empty: from scratch."),
    Key("MODEL.PIXEL_MEAN", [103.530, 116.280, 123.675], COLOUR, "What is subtracted from an image."),
    Key("MODEL.PIXEL_STD", [1.0, 1.0, 1.0], DEVIATION, "What the difference is divided by."),
    Key("MODEL.DDP_FIND_UNUSED_PARAMETERS", False, SWITCH,
        "Whether processes may use different parts of the network in a step, as those of a search do."),
    Key("MODEL.FBNETV5.FAMILY", "A", one_known(list_families),
        "The family of networks, the paper's A, A_C, A_R, C, F."),
    Key("MODEL.FBNETV5.NUM_STAGES", 7, between(1, MOST_STAGES), "Stages of the supernet after Stage 0.", SEARCH),
    Key("MODEL.FBNETV5.COMPILE", False, SWITCH, "Whether torch.compile compiles the blocks for training."),
    Key("MODEL.FBNETV5.TOPOLOGY", "", FILE,
        "The topologies.json of the search that found the network, or its front.json; empty: the zoo's reconstruction.",
        MODEL),
    Key("MODEL.FBNETV5.TOPOLOGY_TASK", "", TEXT,
        "Which of its tasks the network was found for; empty: the model's own (cls, det, seg or depth). Several heads"
        " take any task of a search's group, or cls+det, the union of their networks.", MODEL),
    Key("MODEL.FBNETV5.BUDGET", {}, OPEN,
        "The most that the backbone may cost as built for its head, Stage 0 included: {flops: 9.0e+6}, params, or"
        " milliseconds by a latency table's name; of a front.json the best network within is taken, or of all.",
        MODEL),
    Key("MODEL.FBNETV5.HEAD", {}, OPEN, "Options of the model by the names of its class, {num_queries: 100}; of"
        " SeveralHeads {heads: {cls: {}, det: {test_proposals: [200, 30]}}, loss_weights: {}}.", MODEL),
    Key("MODEL.FBNETV5.DISTILLATION.TEACHER", "", TEXT,
        "The timm model that a classifier is distilled from, by its hard labels; empty: none.", CLASSIFIER),
    Key("MODEL.FBNETV5.DISTILLATION.TEACHER_WEIGHTS", "", FILE,
        "The teacher's weights; empty: timm's own.", CLASSIFIER),
    Key("MODEL.FBNETV5.DISTILLATION.WEIGHT", 0.5, between(0, 1), "The teacher's share of the loss.", CLASSIFIER),

    Key("MODEL_EMA.ENABLED", False, SWITCH, "Whether a moving average of the weights is kept and judged too."),
    Key("MODEL_EMA.DECAY", 0.999, between(0, below=1), "The share of the old average that a step keeps."),
    Key("MODEL_EMA.INCLUDE_BUFFER", True, SWITCH, "Whether batch-norm statistics are averaged too, or copied."),

    Key("INPUT.FORMAT", "BGR", one_of("RGB"), "The order of an image's colours."),
    Key("INPUT.MIN_SIZE_TRAIN", (800,), SIDES, "Short sides of training images, one of which is drawn for each."),
    Key("INPUT.MAX_SIZE_TRAIN", 1333, between(1), "The most that the long side of a training image becomes."),
    Key("INPUT.MIN_SIZE_TEST", 800, between(0, MOST_PIXELS),
        "The short side at evaluation, 0 for the image's own size."),
    Key("INPUT.MAX_SIZE_TEST", 1333, between(0),
        "The most that the long side becomes at evaluation, without CROP_SIZE_TEST."),
    Key("INPUT.RANDOM_FLIP", "horizontal", one_of("horizontal", "none"),
        "Whether half of training's images are mirrored."),
    Key("INPUT.COLOR_AUG_SSD", False, SWITCH,
        "Whether SSD's random brightness, contrast, saturation and hue are used."),
    Key("INPUT.CROP.ENABLED", False, SWITCH, "Whether training images are cropped."),
    Key("INPUT.CROP.TYPE", "relative_range", one_of("absolute", "absolute_range", "relative", "relative_range"),
        "What SIZE is; absolute, in pixels, is all that our own trainer crops."),
    Key("INPUT.CROP.SIZE", [0.9, 0.9], POSITIVE, "Height and width of a crop."),
    Key("INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 1.0, between(over=0, most=1),
        "A crop is drawn again, ten times at most, while one class has more than this share of its labelled pixels."),

    Key("FBNETV5_DATA.DATASETS", {}, OPEN,
        "Data sets by the names that DATASETS has, {name: {READER: a registered reader, its options}}; options alone"
        " where the name is a registered one itself."),
    Key("FBNETV5_DATA.COLOR_JITTER", 0.0, between(0, 1), "Strength of random brightness, contrast and saturation."),
    Key("FBNETV5_DATA.CROP_SIZE_TEST", 0, between(0, MOST_PIXELS),
        "Side of the central crop at evaluation in pixels, 0 for the whole image."),
    Key("FBNETV5_DATA.CROP_AREA", [], Rule("[], or two rising shares of more than 0 up to 1", _is_share),
        "The least and the greatest share of an image that a random crop keeps before it is resized to INPUT.CROP.SIZE;"
        " labels that have a place are lost.", CLASSIFIER + SEARCH),
    Key("FBNETV5_DATA.RAND_AUGMENT", 0, between(0, 30),
        "With CROP_AREA: RandAugment's magnitude.", CLASSIFIER + SEARCH),
    Key("FBNETV5_DATA.RANDOM_ERASE", 0.0, between(0, 1),
        "With CROP_AREA: the probability that a random rectangle is erased.", CLASSIFIER + SEARCH),
    Key("DATASETS.TRAIN", (), SOME_NAMES, "The sets to train on, all of the same classes."),
    Key("DATASETS.TEST", (), ONE_NAME, "The set to judge on."),
    Key("DATALOADER.NUM_WORKERS", 4, between(0, 1024), "Processes that prepare images, for each process of the run."),
    Key("DATALOADER.ASPECT_RATIO_GROUPING", True, SWITCH,
        "Whether a batch has only wide or only upright images, where they are not cropped and their sizes are known."),

    Key("SOLVER.MAX_ITER", 40000, between(1, MOST_ITERATIONS), "Iterations in all."),
    Key("SOLVER.IMS_PER_BATCH", 16, between(1, 2**17), "Images of an iteration, over all processes."),
    Key("SOLVER.GRAD_ACCUM", 1, between(1),
        "In how many parts, one after another, a process runs its images of an iteration; its gradient is their mean."),
    Key("SOLVER.REFERENCE_WORLD_SIZE", 0, between(0),
        "How many processes the file is written for; batch, rate and iterations are scaled to the number there is (0:"
        " they are not)."),
    Key("SOLVER.OPTIMIZER", "sgd", one_of("sgd", "adamw"), "The optimizer."),
    Key("SOLVER.BASE_LR", 0.001, between(over=0), "The rate, before the schedule."),
    Key("SOLVER.MOMENTUM", 0.9, between(0, 1), "SGD's momentum."),
    Key("SOLVER.NESTEROV", False, SWITCH, "Whether SGD's momentum is Nesterov's."),
    Key("SOLVER.BETAS", (0.9, 0.999), BETAS, "AdamW's decays of its two averages."),
    Key("SOLVER.EPS", 1e-08, between(over=0), "AdamW's epsilon."),
    Key("SOLVER.WEIGHT_DECAY", 0.0001, between(0), "Decay of weights."),
    Key("SOLVER.WEIGHT_DECAY_NORM", 0.0, between(0), "Decay of the weights of norms."),
    Key("SOLVER.WEIGHT_DECAY_EMBED", 0.0, between(0), "Decay of embeddings."),
    Key("SOLVER.LR_MULTIPLIER_OVERWRITE", [], FACTORS, "Factors of the rate for weights, [{backbone: 0.1}]."),
    Key("SOLVER.CLIP_GRADIENTS.ENABLED", False, SWITCH, "Whether gradients are clipped."),
    Key("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value", one_of("value", "norm", "full_model"),
        "Whether each entry is clipped, each parameter's norm, or the norm of all."),
    Key("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1.0, between(over=0), "What gradients are clipped to."),
    Key("SOLVER.CLIP_GRADIENTS.NORM_TYPE", 2.0, between(over=0), "The power of the norm that is clipped."),
    Key("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", one_of(*SCHEDULES), "How the rate changes."),
    Key("SOLVER.STEPS", (30000,), Rule("rising iteration numbers from 1", _is_rising),
        "Iterations at which WarmupMultiStepLR multiplies the rate by GAMMA."),
    Key("SOLVER.GAMMA", 0.1, between(over=0), "The factor of a decay."),
    Key("SOLVER.NUM_DECAYS", 3, between(1, 10**6), "How often WarmupStepWithFixedGammaLR decays, at equal distances."),
    Key("SOLVER.BASE_LR_END", 0.0, between(0), "The rate that WarmupCosineLR ends with."),
    Key("SOLVER.POLY_LR_POWER", 0.9, between(over=0), "The power of WarmupPolyLR."),
    Key("SOLVER.POLY_LR_CONSTANT_ENDING", 0.0, between(0, 1), "The share of the rate that WarmupPolyLR ends with."),
    Key("SOLVER.WARMUP_ITERS", 1000, between(0), "Iterations of the warm-up."),
    Key("SOLVER.WARMUP_FACTOR", 1.0 / 1000, between(0), "The share of the rate that the warm-up starts with."),
    Key("SOLVER.WARMUP_METHOD", "linear", one_of("linear", "constant"),
        "Whether the rate rises during the warm-up or stays there."),
    Key("SOLVER.AMP.ENABLED", False, SWITCH, "Whether a GPU computes in mixed precision."),
    Key("SOLVER.AMP.PRECISION", "float16", one_of(*DTYPES), "The lower precision."),
    Key("SOLVER.DETERMINISTIC", False, SWITCH,
        "Whether a GPU's kernels are those that give equal numbers again, where torch has them; it warns of others."),
    Key("SOLVER.CHECKPOINT_PERIOD", 5000, between(1), "Every how many iterations a checkpoint is written."),
    Key("SOLVER.CHECKPOINT_KEEP", 3, between(1), "How many of the newest checkpoints are kept."),

    Key("TEST.EVAL_PERIOD", 0, between(0), "Every how many iterations the model is judged, 0 for the end alone."),
    Key("TEST.PRECISE_BN.ENABLED", False, SWITCH,
        "Whether batch-norm statistics are estimated anew for an evaluation.", MODEL),
    Key("TEST.PRECISE_BN.NUM_ITER", 200, between(1, 10_000), "Training batches that they are estimated on.", MODEL),

    Key("SEARCH.ALGORITHM", "multitask", one_known(ALGORITHMS.names),
        "The paper's Algorithm 4 (multitask), 1 (single_task), 2 (per_task_forward), 3 (shared_forward), or random.",
        SEARCH),
    Key("SEARCH.ESTIMATOR", "", TEXT,
        "How the probabilities' gradient is estimated, where an algorithm has a choice: straight_through, also if"
        " empty,"
        " or reinforce.", SEARCH),
    Key("SEARCH.TASKS", ["cls", "det", "seg"], SOME_TASKS,
        "The tasks to find a topology for, each; with FROM those that are added.", SEARCH),
    Key("SEARCH.FROM", "", Rule("the folder of a finished search, or nothing", path=True),
        "The finished search that TASKS are added to: its supernet and its tasks stay what they are, until"
        " ARCH_WARMUP_ITERS the new heads learn, and then the new tasks' probabilities alone.", SEARCH),
    Key("SEARCH.ADAPT.ENABLED", False, SWITCH,
        "With FROM: whether the finished search's supernet and heads follow, its tasks' losses beside. Its topologies"
        " and probabilities stay what they are.", SEARCH),
    Key("SEARCH.ADAPT.LR_FACTOR", 0.1, between(over=0, most=1),
        "The rate of what follows, as a factor of the new heads'.", SEARCH),
    Key("SEARCH.ADAPT.BAND", 0.02, between(0, below=1),
        "The share of itself by which the first metric of a task of the finished search may be worse at the end than at"
        " the start; what was added is refused otherwise.", SEARCH),
    Key("SEARCH.GROUPS", [], TASK_GROUPS,
        "Tasks of which one network is to be found, with a head for each: [[cls, det, seg]], or [[cls], [det, seg]]."
        " They share one distribution, which learns from the sum of their losses and whose cost counts once.", SEARCH),
    Key("SEARCH.HEADS", {}, OPEN, "Options of tasks' heads by the tasks' names, {det: {feature: path1}}.", SEARCH),
    Key("SEARCH.SAMPLES_PER_RANK", 4, between(1), "Topologies that a process draws in an iteration.", SEARCH),
    Key("SEARCH.SHARED_IMAGES", False, SWITCH,
        "Whether each topology sees the process' whole batch and not its part once the probabilities learn; such a step"
        " takes up to SAMPLES_PER_RANK times as long.", SEARCH),
    Key("SEARCH.ARCH_WARMUP_ITERS", 0, between(0), "Iterations before the probabilities learn.", SEARCH),
    Key("SEARCH.WARMUP_DENSITIES", False, SWITCH,
        "Whether, until the probabilities learn, each topology keeps a block with a probability of its own, uniform in"
        " [0, 1], and not with INIT_PROB, so that the supernet learns sparse and dense networks alike.", SEARCH),
    Key("SEARCH.ARCH_LR_FACTOR", 0.01, between(0), "The probabilities' rate as a factor of SOLVER.BASE_LR.", SEARCH),
    Key("SEARCH.ARCH_LR_DECAY", False, SWITCH,
        "Whether the probabilities' rate also falls linearly, from ARCH_WARMUP_ITERS on, to zero at SOLVER.MAX_ITER.",
        SEARCH),
    Key("SEARCH.TRAIN_WEIGHTS", True, SWITCH,
        "Whether the weights learn too; those of MODEL.WEIGHTS, a supernet that is trained already, may rest, and a"
        " step has no backward pass then and may have far more samples.", SEARCH),
    Key("SEARCH.INIT_PROB", 0.5, between(0, 1), "What every probability starts with.", SEARCH),
    Key("SEARCH.PROB_MIN", 0.02, between(over=0, below=0.5), "Probabilities stay in [PROB_MIN, 1 - PROB_MIN].", SEARCH),
    Key("SEARCH.LOSS_WINDOW", 200, between(0, 100_000),
        "Iterations over which the losses are normalised for the estimate, 0 for none.", SEARCH),
    Key("SEARCH.IMPORTANCE_WEIGHTED", True, SWITCH, "Whether samples are weighted by Eq. 11.", SEARCH),
    Key("SEARCH.SELF_NORMALIZE", True, SWITCH, "Whether the weights of a step's samples sum to one.", SEARCH),
    Key("SEARCH.COST.METRIC", "flops", one_of(*METRICS, "latency"), "What a topology's cost is.", SEARCH),
    Key("SEARCH.COST.TABLE", "", FILE, "The latencies of blocks, as d2go_fbnetv5.latency_table writes them.", SEARCH),
    Key("SEARCH.COST.TARGET", 0.5, between(0, 1), "The share of the full supernet's cost that is free.", SEARCH),
    Key("SEARCH.COST.TASK_TARGETS", {}, OPEN, "A TARGET of its own for some tasks, {det: 0.4}.", SEARCH),
    Key("SEARCH.COST.BUDGET", {}, OPEN,
        "In place of a TARGET, what the backbone of some tasks may cost as built for their head, Stage 0 included, in"
        " METRIC's unit (FLOPs, parameters, milliseconds): {det: 9.0e+6}. What is found keeps it.", SEARCH),
    Key("SEARCH.COST.PRICE", "hinge", one_of("hinge", "absolute"),
        "What has a price: costs above TARGET (the paper's hinge), or also those below it (TuNAS' absolute value).",
        SEARCH),
    Key("SEARCH.COST.WEIGHT", 1.0, between(0), "The price of costs above TARGET (Appendix E), 0 for none.", SEARCH),
    Key("SEARCH.COST.EXPECTED", False, SWITCH,
        "Price the expected cost, which is free below TARGET, and not that of each sample, as the paper does.", SEARCH),
    Key("SEARCH.COST.SIZE", [], COST_SIZE, "The size of image that costs are counted for.", SEARCH),
    Key("SEARCH.EVAL.RANDOM_TOPOLOGIES", 8, between(0, 10_000), "Rivals of a found topology in the report.", SEARCH),
    Key("SEARCH.EVAL.BN_ITERS", 20, between(1, 10_000), "Training batches to estimate statistics on.", SEARCH),
    Key("SEARCH.EVAL.MAX_IMAGES", 0, between(0), "Images of the validation set to judge on, 0 for all.", SEARCH),
    Key("SEARCH.EVAL.CANDIDATES", 1, between(1, 1000),
        "Likeliest topologies of a task of which the one with the least loss and price is what was found: all of them"
        " on BN_ITERS training batches, the best quarter on four times as many.", SEARCH),
))
# fmt: on

# Groups in which the user names the keys.
OPEN_GROUPS = tuple(name for name, row in KEYS.items() if isinstance(row.default, dict))
