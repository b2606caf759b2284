"""Names of the samplers and schedulers that a search can use, for the options of tune/run.py; imports no library."""

SAMPLERS = ("tpe", "nsga2", "gp", "random")  # of Optuna: `tune.search.optuna_study`
SCHEDULERS = {
    "mo_asha": "stops trials with low accuracy for their MACs",
    "asha": "stops trials with low accuracy",
    "fifo": "stops no trial",
    "pbt": "population based training: trials of one network copy the weights and hyperparameters of better ones",
}
