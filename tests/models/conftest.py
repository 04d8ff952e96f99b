from models.train import use_threads

use_threads(1)  # as the trainer does; small steps only get slower with more
