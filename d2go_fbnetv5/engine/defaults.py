"""The configuration keys this host shares with Detectron2 and D2Go, and the ones of FBNetV5.

Names, types and values of shared keys are Detectron2's and D2Go's own, so that one YAML file means the same
in every host. Only keys that this host reads are listed.
"""

from fvcore.common.config import CfgNode

# Keys that are paths of files or folders, in which `~` is the home folder; those of pseudo-labels among them.
PATHS = (
    "OUTPUT_DIR",
    "MODEL.WEIGHTS",
    "MODEL.FBNETV5.TOPOLOGY",
    "MODEL.FBNETV5.DISTILLATION.TEACHER_WEIGHTS",
    "SEARCH.COST.TABLE",
)
# Lists of texts that are empty by default; what other lists hold, their defaults say.
TEXTS = (
    "IMPORTS",
    "IMPORT_FOLDERS",
    "DATASETS.TRAIN",
    "DATASETS.TEST",
    "CLS.NAMES",
    "DET.NAMES",
    "SEG.NAMES",
)


def detectron2_config() -> CfgNode:
    """The part of Detectron2's default configuration which this host reads."""
    cfg = CfgNode()
    cfg.VERSION = 2

    cfg.MODEL = CfgNode()
    cfg.MODEL.DEVICE = "cuda"
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.PIXEL_MEAN = [103.530, 116.280, 123.675]
    cfg.MODEL.PIXEL_STD = [1.0, 1.0, 1.0]

    cfg.INPUT = CfgNode()
    cfg.INPUT.MIN_SIZE_TRAIN = (800,)
    cfg.INPUT.MAX_SIZE_TRAIN = 1333
    cfg.INPUT.MIN_SIZE_TEST = 800
    cfg.INPUT.MAX_SIZE_TEST = 1333
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.INPUT.CROP = CfgNode({"ENABLED": False, "TYPE": "relative_range", "SIZE": [0.9, 0.9]})
    cfg.INPUT.FORMAT = "BGR"

    cfg.DATASETS = CfgNode({"TRAIN": (), "TEST": ()})
    # Grouping takes effect where images keep their aspect ratio (no crop) and their sizes are known beforehand.
    cfg.DATALOADER = CfgNode({"NUM_WORKERS": 4, "ASPECT_RATIO_GROUPING": True})

    cfg.SOLVER = CfgNode()
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupMultiStepLR"
    cfg.SOLVER.MAX_ITER = 40000
    cfg.SOLVER.BASE_LR = 0.001
    cfg.SOLVER.BASE_LR_END = 0.0
    cfg.SOLVER.MOMENTUM = 0.9
    cfg.SOLVER.NESTEROV = False
    cfg.SOLVER.WEIGHT_DECAY = 0.0001
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    cfg.SOLVER.GAMMA = 0.1
    cfg.SOLVER.STEPS = (30000,)
    cfg.SOLVER.NUM_DECAYS = 3
    cfg.SOLVER.WARMUP_FACTOR = 1.0 / 1000
    cfg.SOLVER.WARMUP_ITERS = 1000
    cfg.SOLVER.WARMUP_METHOD = "linear"
    cfg.SOLVER.CHECKPOINT_PERIOD = 5000
    cfg.SOLVER.IMS_PER_BATCH = 16
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
    cfg.SOLVER.CLIP_GRADIENTS = CfgNode(
        {"ENABLED": False, "CLIP_TYPE": "value", "CLIP_VALUE": 1.0, "NORM_TYPE": 2.0}
    )
    cfg.SOLVER.AMP = CfgNode({"ENABLED": False})

    cfg.TEST = CfgNode({"EVAL_PERIOD": 0})
    cfg.TEST.PRECISE_BN = CfgNode({"ENABLED": False, "NUM_ITER": 200})

    cfg.OUTPUT_DIR = "./output"
    cfg.SEED = -1
    cfg.CUDNN_BENCHMARK = False
    return cfg


def add_fbnetv5_config(cfg: CfgNode) -> None:
    """Add FBNetV5's keys to a configuration of this host, of Detectron2 or of D2Go, in place.

    Keys of D2Go that our recipes use are added where they are missing (plain Detectron2, this host).
    """
    node = type(cfg)
    add_imports(cfg)
    _add_missing(cfg, "MODEL_EMA", node())
    _add_missing(cfg.MODEL_EMA, "ENABLED", False)
    _add_missing(cfg.MODEL_EMA, "DECAY", 0.999)
    # Whether batch-norm statistics are averaged too; they are copied otherwise.
    _add_missing(cfg.MODEL_EMA, "INCLUDE_BUFFER", True)
    _add_missing(cfg.MODEL, "DDP_FIND_UNUSED_PARAMETERS", False)
    _add_missing(cfg.SOLVER, "OPTIMIZER", "sgd")
    _add_missing(cfg.SOLVER, "BETAS", (0.9, 0.999))
    _add_missing(cfg.SOLVER, "EPS", 1e-08)
    _add_missing(cfg.SOLVER.AMP, "PRECISION", "float16")
    _add_missing(cfg, "WRITER_PERIOD", 20)
    # [{part of a weight's name: factor of its rate}, ...]
    _add_missing(cfg.SOLVER, "LR_MULTIPLIER_OVERWRITE", [])
    _add_missing(cfg.SOLVER, "WEIGHT_DECAY_EMBED", 0.0)

    # Keys of Detectron2's own projects (DeepLab, PointRend), which MaskFormer's recipe uses.
    _add_missing(cfg.SOLVER, "POLY_LR_POWER", 0.9)
    _add_missing(cfg.SOLVER, "POLY_LR_CONSTANT_ENDING", 0.0)
    # SSD's random brightness, contrast, saturation and hue.
    _add_missing(cfg.INPUT, "COLOR_AUG_SSD", False)
    # A crop is drawn again, ten times at most, while one class has more than this share of its labelled pixels.
    _add_missing(cfg.INPUT.CROP, "SINGLE_CATEGORY_MAX_AREA", 1.0)

    # How many minutes a process waits for another one before the run ends and says so. Process 0 may
    # have more to evaluate or to write than the others, so it is not to be short.
    cfg.DISTRIBUTED = node({"TIMEOUT_MINUTES": 60.0})

    # How many of the newest checkpoints are kept.
    cfg.SOLVER.CHECKPOINT_KEEP = 3

    cfg.MODEL.FBNETV5 = node()
    cfg.MODEL.FBNETV5.FAMILY = "A"
    cfg.MODEL.FBNETV5.NUM_STAGES = 7
    # torch.compile for the blocks, while the network is trained.
    cfg.MODEL.FBNETV5.COMPILE = False
    # A topologies.json, for models that are built from what a search found; empty for the zoo's reconstruction.
    cfg.MODEL.FBNETV5.TOPOLOGY = ""
    # Which of the file's tasks; empty for the model's own ("cls", "det" or "seg").
    cfg.MODEL.FBNETV5.TOPOLOGY_TASK = ""
    # Options of the model by the names of its class: {"num_queries": 100}.
    cfg.MODEL.FBNETV5.HEAD = node(new_allowed=True)
    # Hard distillation of a classifier from a timm model (empty: none) with timm's weights or a file's; WEIGHT is
    # the teacher's share of the loss.
    cfg.MODEL.FBNETV5.DISTILLATION = node({"TEACHER": "", "TEACHER_WEIGHTS": "", "WEIGHT": 0.5})

    # Data sets by the name used in DATASETS: {name: {READER: a registered reader, its options...}}; options alone
    # where the name is a registered one itself ("digit_scenes_train").
    cfg.FBNETV5_DATA = node()
    cfg.FBNETV5_DATA.DATASETS = node(new_allowed=True)
    # Strength of the random brightness, contrast and saturation, 0 (none) to 1.
    cfg.FBNETV5_DATA.COLOR_JITTER = 0.0
    # Side of the central crop at evaluation in pixels, 0 for the whole image. INPUT.MAX_SIZE_TEST holds without it.
    cfg.FBNETV5_DATA.CROP_SIZE_TEST = 0
    # For classifiers alone: [least, most] share of an image's area that a random crop of any place and shape keeps
    # before it is resized to INPUT.CROP.SIZE; [] crops INPUT.CROP.SIZE out of the resized image. With it may go
    # RandAugment of this magnitude (0: none), 0 to 30, and erasing a random rectangle with this probability.
    cfg.FBNETV5_DATA.CROP_AREA = []
    cfg.FBNETV5_DATA.RAND_AUGMENT = 0
    cfg.FBNETV5_DATA.RANDOM_ERASE = 0.0

    search = cfg.SEARCH = node()
    # "multitask" (the paper's Algorithm 4), "single_task" (1), "per_task_forward" (2), "shared_forward" (3), "random".
    search.ALGORITHM = "multitask"
    # How the probabilities' gradient is estimated by single_task and per_task_forward: "straight_through", also if
    # empty, or "reinforce". The other algorithms have one way each.
    search.ESTIMATOR = ""
    search.TASKS = ["cls", "det", "seg"]
    # Options of a task's head by its name: {"det": {"feature": "path1"}}.
    search.HEADS = node(new_allowed=True)
    search.SAMPLES_PER_RANK = 4
    # Whether each sample sees the rank's whole batch and not its part of it once the probabilities learn, so that a
    # step compares its topologies on the same images. Such a step takes SAMPLES_PER_RANK times as long.
    search.SHARED_IMAGES = False
    search.ARCH_WARMUP_ITERS = 0
    search.ARCH_LR_FACTOR = 0.01
    # Whether the rate of the probabilities also falls linearly, from ARCH_WARMUP_ITERS on, to zero at SOLVER.MAX_ITER.
    search.ARCH_LR_DECAY = False
    # False leaves the weights of MODEL.WEIGHTS, a supernet that is trained already, as they are: a step has no
    # backward pass, and may have far more samples.
    search.TRAIN_WEIGHTS = True
    search.INIT_PROB = 0.5
    # Probabilities are kept in [PROB_MIN, 1 - PROB_MIN].
    search.PROB_MIN = 0.02
    search.LOSS_WINDOW = 200
    search.IMPORTANCE_WEIGHTED = True
    search.SELF_NORMALIZE = True
    # Appendix E: WEIGHT * max(0, relative cost - TARGET). SIZE is [height, width], [] for the family's own. METRIC is
    # "flops", "params", or "latency", which TABLE, a file of `latency_table` or of the same format, has for that size.
    search.COST = node({"METRIC": "flops", "TABLE": "", "TARGET": 0.5, "WEIGHT": 1.0, "SIZE": []})
    # MAX_IMAGES of the validation set are used, 0 for all of them. Of CANDIDATES topologies, the likeliest ones of a
    # task, that with the lowest loss and price on BN_ITERS training batches is what was found.
    search.EVAL = node({"RANDOM_TOPOLOGIES": 8, "BN_ITERS": 20, "MAX_IMAGES": 0, "CANDIDATES": 1})


def add_imports(cfg: CfgNode) -> None:
    """Add the keys by which users have modules of their own imported, in place."""
    # Modules to import first: they register tasks, readers, families, teachers or formats. Their code runs.
    cfg.IMPORTS = []
    # Where they are looked for besides the current folder; the configuration file's folder is added.
    cfg.IMPORT_FOLDERS = []


def _add_missing(node: CfgNode, key: str, value: object) -> None:
    if key not in node:
        setattr(node, key, value)
