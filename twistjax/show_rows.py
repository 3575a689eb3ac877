"""``twistjax show``: the texts of a config as tokens, with what of them is learnt."""

from pathlib import Path

from jaxrun.config.settings import ShowSettings, take_settings
from jaxrun.config.verbs import Args
from jaxrun.process.errors import UserError


def run(args: Args) -> int:
    """Runs ``twistjax show CONFIG key=value ...``."""
    from rich.console import Console

    from jaxlm.data.show_tokens import as_json, choose, show
    from jaxlm.data.text_rows import read_documents
    from jaxlm.files.tokenizer import load_tokenizer
    from jaxrun.config.config import load_config
    from jaxrun.store.opening import day_of
    from twistjax.config import TwistConfig

    settings, overrides = take_settings(ShowSettings, args.overrides)
    config = load_config(TwistConfig, args["config"], overrides)
    spec = config.model
    tokenizer = load_tokenizer(spec.model_name_or_path, trust_remote_code=spec.trust_remote_code)
    train, validation = read_documents(config.data, tokenizer, day_of(Path(config.output_dir)))
    data = train if settings.split == "train" else validation
    if data is None:
        raise UserError(
            "split=validation: without data.validation the rows to validate on are cut from the joined training text, "
            "expected split=train"
        )
    shown = [choose("texts, before they are joined and cut into rows", data, settings, tokenizer)]
    if settings.as_json:
        print(as_json(shown))
    else:
        show(shown, Console())
    return 0
