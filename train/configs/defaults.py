"""Every field of a classification run, its default and its legal values.

A config file starts from this and changes what it needs; so do the command line and a stored run:

    from train.configs import defaults

    def get_config():
        config = defaults.get_config()
        config.optimizer.learning_rate = 3e-3
        return config

Misspelt fields and wrong types are refused where they are written. The groups named `fields` and `options` alone take
new keys: they are handed on as keyword arguments, and checked by what receives them.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """All fields of a classification run with their defaults (no arrays, no shapes).

    Returns:
      A ConfigDict that takes no new fields, except in groups named `fields` and `options`.
    """
    config = ConfigDict()
    config.task = "classification"  # a name of train.tasks.TASKS: classification | regression | …
    config.seed = 0  # of the split, the initialisation, the batch order and every random draw; >= 0
    config.epochs = 40  # passes over the training split; >= 1
    config.max_steps = 0  # parameter updates after which the run ends, epochs or not; 0 = no limit
    config.batch_size = 64  # examples per parameter update, over all devices; what an epoch leaves over is dropped
    config.eval_batch_size = 256  # examples per batch of evaluation, over all devices; changes no result
    config.accumulate = 1  # parts that a batch is cut into to save memory, gradients added up; divides batch_size
    config.folds = 1  # 1 = one split; K > 1 = K-fold cross-validation, with the ensemble of the K models
    config.loop = "auto"  # compiled (one scan per epoch) | host (one call per step) | auto (compiled on accelerators)
    config.log_every = 0  # steps between two training lines of metrics.jsonl; 0 = one line an epoch
    config.recompute_batch_stats = False  # True: after training, BatchNorm averages over the whole training split
    config.evaluate_with = "best"  # weights of the final evaluation: best (validation loss) | last | average

    # a pipeline of before deep learning, of at most 5,000 images, to stand beside the network:
    # none | hog_svm | hog_knn | color_svm | pixels_knn
    config.baseline = "hog_svm"

    config.model = ConfigDict()
    config.model.name = "lenet5"  # a name of models.list_models()
    config.model.dtype = "float32"  # of activations: float32 | bfloat16; parameters and statistics stay float32
    config.model.fields = ConfigDict()  # fields of the model, e.g. {"dropout": 0.5}
    config.model.whiten = ""  # the first convolution, to be set from the images (dl_core/whitening.py); empty = learnt

    config.data = ConfigDict()
    config.data.name = "digits"  # digits | scenes | eyes | folder:PATH | npz:PATH | a prepared tensorflow-dataset
    config.data.data_dir = ""  # folder of prepared data sets; empty = TFDS_DATA_DIR, else ~/tensorflow_datasets
    config.data.image_size = 0  # height and width in pixels to resize to; 0 = as stored
    config.data.placement = "auto"  # device (all in device memory) | grain (streamed) | auto (device if it fits)
    config.data.max_device_bytes = 2 * 1024**3  # what "auto" calls fitting: bytes of decoded uint8 images
    config.data.workers = 0  # processes that decode images for Grain; 0 = threads of this one
    config.data.on_error = "skip"  # an unreadable image is: skip (left out and named) | raise (the end of the run)
    config.data.split = (0.70, 0.15, 0.15)  # shares of training, validation, test; only where the set brings no split
    config.data.options = ConfigDict()  # further arguments of dl_core.data.load, e.g. {"channels": 1, "resize": "crop"}
    config.data.label_noise = 0.0  # probability in [0, 1] that a training label is replaced by a random one
    config.data.shuffle_labels = False  # True: training labels permuted at random, a control that must end at chance

    config.augment = ConfigDict()  # training images only
    config.augment.crop_padding = 0  # pixels: pad each side by this, then cut the original size at random
    config.augment.flip = False  # True: mirror left-right with probability 1/2
    config.augment.alternate_flip = False  # True: an image is mirrored in every other epoch, half of them in the first
    config.augment.translate = 0  # pixels: largest shift along either axis
    config.augment.policy = "none"  # after these: none | rand_augment | trivial_augment | adaptive
    config.augment.strength = (
        0.3  # of the policy, in [0, 1]: share of RandAugment's 30 magnitudes, p of the adaptive one
    )
    config.augment.cut_out = 0  # pixels: side of a square painted over
    config.augment.mix = "none"  # every image with another of the batch (classification): none | mix_up | cut_mix
    config.augment.mix_alpha = 1.0  # > 0; shares are drawn from Beta(alpha, alpha)
    config.augment.test_views = "none"  # predictions are averaged over: none | mirror | ten_crop (of the padded image)
    config.augment.test_padding = 1  # pixels on each side before the ten crops

    config.hardening = ConfigDict()  # adversarial training (classification, distillation); train/hardening.py
    # none | madry (PGD, costs steps + 1 times) | trades (about steps + 2) | free (replays) | fast (2, may overfit)
    config.hardening.recipe = "none"
    config.hardening.eps = 8 / 255  # largest change of an image in [0, 1], in the norm; > 0
    config.hardening.norm = "linf"  # linf (of each pixel) | l2 (root of the sum of squares) | l1 (sum)
    config.hardening.step_size = 0.0  # of the attack; 0 = madry, trades: 2.5 eps / steps, free: eps, fast: 1.25 eps
    config.hardening.steps = 7  # of madry and trades; >= 1
    config.hardening.beta = 6.0  # of trades: weight of robustness beside accuracy; >= 0
    config.hardening.replays = 4  # of free: updates on every batch, so that an epoch costs as much as so many; >= 1
    config.hardening.clean_share = 0.0  # share of the training images that is left as it is; in [0, 1)
    config.hardening.test_steps = 20  # of the PGD in every validation and test of a hardened run; 0 = none

    config.optimizer = ConfigDict()
    # sgd | momentum | nesterov | adagrad | adadelta | rmsprop | rmsprop_norm | adam | adamw | muon
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3  # peak, after the warm-up; > 0
    config.optimizer.weight_decay = 0.0  # >= 0; coefficient lambda of the decay
    config.optimizer.decay = "decoupled"  # decoupled (taken from the weights) | coupled (added to the gradient: L2)
    config.optimizer.decay_mask = "kernels"  # what decays: kernels (neither biases nor norms) | all
    config.optimizer.l1 = 0.0  # >= 0; coefficient of sign(weight) added to the gradient
    config.optimizer.clip_value = 0.0  # largest absolute value of a gradient's element; 0 = off
    config.optimizer.clip_norm = 0.0  # largest global norm of the gradient; 0 = off
    config.optimizer.clip_adaptive = 0.0  # largest ratio of gradient to weight norm, per unit; 0 = off
    config.optimizer.options = ConfigDict()  # further arguments of the optimiser, e.g. {"momentum": 0.9} or {"b1": 0.9}

    config.transfer = ConfigDict()  # patterns name parameters by path: dl_core/optim/transfer.py
    config.transfer.weights = ""  # workdir of a finished run, or a .safetensors, .pth or .pt file; empty = from scratch
    config.transfer.new_head = False  # True: the head starts fresh even where the classes are the same
    config.transfer.freeze = ()  # patterns of what stays as it is, e.g. ("conv*",); BatchNorm keeps its statistics too
    config.transfer.layer_decay = 1.0  # learning rate of a group of layers over that of the next; in (0, 1], 1 = off
    config.transfer.unfreeze_every_epochs = 0.0  # the head trains first, then one group more every so many; 0 = off
    config.transfer.groups = ()  # patterns from input to head, one a group; empty = one for each module with kernels

    config.schedule = ConfigDict()
    config.schedule.name = "cosine"  # constant | step | exponential | polynomial | linear | cosine
    config.schedule.warmup_epochs = 0.0  # epochs of linear rise from 0; < epochs
    config.schedule.options = ConfigDict()  # further arguments of the schedule, e.g. {"every": 1000, "factor": 0.1}

    config.plateau = ConfigDict()  # on top of the schedule
    config.plateau.factor = 1.0  # learning rate times this where the validation loss stands still; in (0, 1], 1 = off
    config.plateau.patience = 5  # validations without a better loss before that; >= 1
    config.plateau.cooldown = 0  # validations after a reduction that do not count
    config.plateau.min_scale = 1e-3  # smallest product of all reductions; in [0, 1]

    config.loss = ConfigDict()
    config.loss.label_smoothing = 0.0  # share of the target spread evenly over the classes; in [0, 1)
    config.loss.l1 = 0.0  # >= 0; times the sum of |kernel|, added to the loss
    config.loss.l2 = 0.0  # >= 0; times half the sum of kernel², added to the loss

    config.regression = ConfigDict()  # of the task "regression" alone
    config.regression.head = "value"  # value | angle (in degrees; errors and outputs wrap around)
    # value: squared_error | l1 | smooth_l1 | huber_loss | log_cosh | gaussian_nll (predicts its own variance)
    # angle: squared_error (to the unit vector) | cosine_angle | von_mises (predicts its own concentration)
    config.regression.loss = "squared_error"
    config.regression.options = ConfigDict()  # further arguments of the loss, e.g. {"beta": 0.1} of smooth_l1

    config.distillation = ConfigDict()  # of the task distillation
    config.distillation.teacher = ""  # workdir of a finished run with the same classes and image size
    config.distillation.temperature = 4.0  # what both networks' logits are divided by; > 0
    config.distillation.alpha = 0.9  # share of the teacher's answers in the loss, the rest is the labels'; in [0, 1]

    config.multi_task = ConfigDict()  # of the task multi_task
    config.multi_task.weighting = "fixed"  # fixed | uncertainty (learned, Kendall et al., 2018)
    config.multi_task.weights = ()  # of fixed weighting, one a head; empty = all 1

    config.average = ConfigDict()
    config.average.name = "none"  # none | ema (exponential, every step) | swa (equal, once an epoch)
    config.average.decay = 0.999  # of ema, per step; in [0, 1)
    config.average.start_epoch = 0.0  # epochs before the average begins

    config.early_stopping = ConfigDict()  # any of the three ends the run
    config.early_stopping.patience = 0  # validations in a row without a better loss; 0 = off
    config.early_stopping.min_delta = 0.0  # what counts as better: lower by more than this
    config.early_stopping.small_update = 0.0  # smallest norm of the update over that of the weights; 0 = off
    config.early_stopping.small_update_patience = 10  # consecutive steps below it
    config.early_stopping.budget_seconds = 0.0  # wall time; 0 = off

    config.parallel = ConfigDict()
    config.parallel.mode = "jit"  # jit (over a mesh) | pmap (data-parallel only)
    config.parallel.devices = 0  # devices to use; 0 = all
    config.parallel.fsdp = 1  # devices that one copy of the parameters is spread over; divides the devices
    config.parallel.model = 1  # devices that one wide layer is spread over; divides the devices
    config.parallel.min_shard_size = 2**14  # elements below which a parameter is not spread
    config.parallel.coordinator = ""  # address:port of the first process; empty = one process
    config.parallel.num_processes = 1
    config.parallel.process_id = 0  # in [0, num_processes)

    config.checkpoint = ConfigDict()
    config.checkpoint.every_epochs = 1.0  # epochs between validations, which are also checkpoints; > 0, e.g. 0.5
    config.checkpoint.keep = 2  # newest checkpoints kept, besides the best of validation

    config.lock()
    with_options = (config.data, config.optimizer, config.schedule, config.regression)
    for group in (config.model.fields, *(part.options for part in with_options)):
        group.unlock()
    return config
