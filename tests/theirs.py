"""An application that is not ours, for Serve."""

from ray import serve


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Theirs:
    """Answers every request alike."""

    def __call__(self) -> str:
        return "theirs"


app = Theirs.bind()  # type: ignore[attr-defined]  # Serve wraps the class
