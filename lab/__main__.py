# SPDX-License-Identifier: MIT
"""python -m lab: see lab/README.md."""
import argparse
import contextlib
import json
import pathlib
import sys
import time


def _missing(error):
    """What to say of a package that is not installed; what the lab lacks of itself is a fault."""
    package = error.name.partition(".")[0]
    if package == "lab":
        raise error
    return f"lab: needs the Python package {package}; lab/README.md says which it takes"


try:
    from lab import arguments, document, prompts, recommend, results, sweep, table, tasks
    from lab.engines import EngineError
    from lab.texts import TextError, Texts
except ModuleNotFoundError as error:
    sys.exit(_missing(error))

ERRORS = (EngineError, prompts.PromptError, results.ResultsError, TextError, OSError)


def _open_engine(args):
    if args.engine == "restated":
        from lab.engines.restated_engine import Engine

        return Engine(args.model, chunk=args.chunk, raw=args.raw)
    if args.engine == "transformers":
        from lab.engines.transformers_engine import Engine

        names = ("draft", "head_map", "controller")
        more = {name: getattr(args, name, None) for name in names}
        decoding = getattr(args, "decode", 0)
        return Engine(args.model, chunk=args.chunk, decoding=decoding, raw=args.raw, **more)
    from lab.engines.hugging_face import numbers, tokenizer_of

    tokenizer, limit = tokenizer_of(args.model, args.raw)
    if args.engine == "openvino":
        from lab.engines.openvino_engine import Engine

        return Engine(args.model, tokenizer, limit, numbers(args.model), args.program, args.openvino)
    from lab.engines.program import Engine

    return Engine(args.model, tokenizer, limit, numbers(args.model), args.program, args.chunk)


def _once(pairs):
    found = {}
    for name, value in pairs:
        if name in found:
            raise EngineError(f"the plan must have {name} once")
        found[name] = value
    return found


def _plan(path, only):
    plan = results.load(path, object_pairs_hook=_once)
    if not (isinstance(plan, dict) and all(isinstance(setting, dict) for setting in plan.values())):
        raise EngineError(f"{path}: must be an object of settings by name")
    for name in only or []:
        if name not in plan:
            raise EngineError(f"--only: the plan has no setting {name!r}; it has {', '.join(plan)}")
    chosen = {name: plan[name] for name in only or plan}
    return {table.DENSE: {}, **chosen}


def _prompts(args, tokenizer, limit):
    """The prompts one after the other: all tasks of an index before the next index."""
    indices = range(getattr(args, "first", 0), getattr(args, "first", 0) + args.n)
    if getattr(args, "prompts", None):
        for prompt in prompts.load(args.prompts):
            wanted = prompt.task in args.tasks and prompt.length in args.length
            if wanted and prompt.index in indices:
                yield prompt
        return
    texts = Texts(args.text, args.code)
    for index in indices:
        for length in args.length:
            for task in args.tasks:
                yield prompts.make(task, length, index, texts, tokenizer, limit)


def _make(args):
    from lab.engines.hugging_face import tokenizer_of

    tokenizer, limit = tokenizer_of(args.model, args.raw)
    prompts.save(args.out, _prompts(args, tokenizer, limit))


def _run(args):
    plan = _plan(args.plan, args.only)
    if args.engine == "openvino":
        del plan[table.DENSE]  # which is this library's exact attention
    engine = _open_engine(args)
    store = results.Store(args.out, engine.subject)
    began, asked = time.monotonic(), 0
    total = args.n * len(args.tasks) * len(args.length) * len(plan)
    for prompt in _prompts(args, engine.tokenizer, engine.limit):
        for name, setting in plan.items():
            asked += 1
            if store.has(prompt.key, name):
                continue
            if args.minutes and time.monotonic() - began > 60 * args.minutes:
                print(f"stopped after {args.minutes} minutes; run it again to go on", file=sys.stderr)
                return
            store.add(_row(engine, prompt, name, setting, args.generate))
            _progress(asked, total, began, prompt.key, name)


def _sweep(args):
    jobs = sweep.read(args.jobs, _plan)
    if args.part is None:
        counts = sweep.spread(sys.argv[1:], jobs, args.out, args.processes, args.gpus)
        print(", ".join(f"{name}: {count} rows" for name, count in counts.items()))
        return

    def make_engine(job):
        return _open_engine(
            argparse.Namespace(
                engine=args.engine,
                model=pathlib.Path(args.models) / job.model,
                chunk=job.chunk,
                raw=job.raw,
            )
        )

    if args.gpus:
        sweep.share_memory(len(args.gpus) / args.processes)
    deadline = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    parts = pathlib.Path(args.out) / "parts"
    texts = Texts(args.text, args.code)
    if not sweep.work(jobs, parts, args.part, args.processes, make_engine, texts, _row, deadline):
        print(f"stopped after {args.minutes} minutes; run it again to go on", file=sys.stderr)


def _asked(args):
    """(engine, ask) of a search that asks nothing: it decides by what the results hold."""
    from lab.engines.hugging_face import numbers

    header, rows, _ = results.read(args.results)
    engine = argparse.Namespace(model=numbers(args.model), subject=header)

    def ask(settings, n):
        return recommend.merged([row for row in rows if prompts.index_of(row["prompt"]) < n], settings)

    return engine, ask


def _asking(args, late):
    """(engine, ask) of a search: ask(settings, n) asks what the results do not hold, until late() says so."""
    engine = _open_engine(args)
    store = results.Store(args.results, engine.subject)

    def ask(settings, n):
        args.n = n
        for prompt in _prompts(args, engine.tokenizer, engine.limit):
            if late():
                break
            for name, setting in {table.DENSE: {}, **settings}.items():
                if not store.has(prompt.key, name):
                    store.add(_row(engine, prompt, name, setting, args.generate))
        return recommend.merged(results.read(args.results)[1], settings)

    return engine, ask


def _recommend(args):
    engine, ask = _asked(args) if args.decide else _asking(args, lambda: search.late())
    limits = recommend.Limits(args.points, args.loss)
    minutes = None if args.hours is None else 60 * args.hours
    say = lambda text: print(text, file=sys.stderr, flush=True)
    search = recommend.Search(ask, limits, minutes, say=say, num_layers=engine.model["num_layers"])
    found = search.run()
    print(table.markdown(table.lines(results.read(args.results)[1])))
    for name in search.undecided():
        print(f"undecided: {name}: {recommend.judge(search.lines[name], limits).why}")
    if found is None:
        late = "time ran out; " if search.out_of_time else ""
        raise EngineError(f"{late}no setting is within the limits for certain; more prompts may show one")
    name, setting = found
    line = search.lines[name]
    recommend.write(
        args.out, recommend.setting_file(name, setting, line, engine, args.tasks, args.length)
    )
    print(f"\n{name}: {recommend.judge(line, limits).why}; written to {args.out}")


def _rounded(value):
    return None if value is None else round(value, 5)


def _row(engine, prompt, name, setting, generate):
    got = engine.measure(prompt, setting, generate)
    scored = tasks.score(prompt.refs, got.text) if got.text is not None else None
    return {
        "prompt": prompt.key,
        "digest": prompt.digest,
        "task": prompt.task,
        "length": prompt.length,
        "setting": name,
        "options": setting,
        "loss": _rounded(got.loss),
        "exact": got.exact,
        "score": scored,
        "seconds": round(got.seconds, 4),
        "pairs": _rounded(got.pairs),
        "kept": _rounded(got.kept),
        **got.more,
    }


def _progress(asked, total, began, key, name):
    text = f"{asked} of {total}, {(time.monotonic() - began) / 60:.1f} min"
    if sys.stderr.isatty():
        print(f"\r{text}, {key}, {name}\033[K", end="", file=sys.stderr, flush=True)
    elif asked % 50 == 0:
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _library_errors():
    from tokensparse import InvalidArgument, Unsupported

    try:
        yield
    except (InvalidArgument, Unsupported) as error:
        raise EngineError(str(error)) from None


def _head_map(args):
    import torch

    from lab.engines import hugging_face
    from tokensparse.methods import sts

    device = "cuda" if torch.cuda.is_available() else "cpu"
    target, tokenizer = hugging_face.load(args.model, "tokensparse", device)
    draft, _ = hugging_face.load(args.draft, "tokensparse", device)
    ids = tokenizer.encode(Texts(args.text).prose[: 8 * args.tokens])[: args.tokens]
    with _library_errors():
        made = sts.calibrate(target, draft, torch.tensor([ids], device=device), heads=args.heads)
    made.save(args.out)
    flat = [value for layer in made.overlap for value in layer]
    print(f"{len(ids)} tokens; overlap {min(flat):.2f} to {max(flat):.2f}, mean {sum(flat) / len(flat):.2f}")


def _controller(args):
    import torch

    from lab.engines import hugging_face
    from tokensparse.methods import adore_training

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = hugging_face.load(args.model, "sdpa", device)
    made = _prompts(args, tokenizer, model.config.max_position_embeddings)
    samples = [torch.tensor([*prompt.tokens, *prompt.answer_tokens]) for prompt in made]
    if not 0 < args.judge < len(samples):
        raise EngineError(f"--judge: must be at least 1 and below the {len(samples)} prompts, is {args.judge}")
    samples, judged = samples[: -args.judge], samples[-args.judge :]
    began = time.monotonic()

    def tell(step, loss):
        if step % 50 == 0:
            minutes = (time.monotonic() - began) / 60
            print(f"{step} steps, {minutes:.1f} min, loss {loss:.4f}", file=sys.stderr, flush=True)

    with _library_errors():
        controller = adore_training.train(model, samples, epochs=args.epochs, on_step=tell)
    controller.save(args.out)
    seconds = time.monotonic() - began
    held = adore_training.held(model, controller, judged, args.tokens)
    print(
        f"{len(samples)} prompts in {seconds:.0f} s; {args.tokens} tokens of {len(judged)} other prompts "
        f"hold {held.controller:.3f} of the last queries' attention, the best as many {held.best:.3f}, "
        f"the first and last {held.last:.3f}"
    )


def _rows(files):
    header, rows = None, []
    for file in files:
        first, more, _ = results.read(file)
        if header is not None and first["model"] != header["model"]:
            raise results.ResultsError(f"{file}: of model {first['model']}, others of {header['model']}")
        header = header or first
        rows += more
    return header, rows


def _table(args):
    header, rows = _rows(document.files(args.results))
    names = {row["setting"] for row in rows}
    ends = args.between or [args.against]
    for name in [*ends, *(args.only or [])]:
        if name not in names:
            raise results.ResultsError(f"table: no setting {name!r}; there are {sorted(names)}")
    only = names if args.only is None else {*ends, *args.only}
    rows = [row for row in rows if row["setting"] in only]
    rows = table.common(rows) if args.common else rows
    made = table.lines(rows, args.tasks, args.against) if not args.between else table.between(rows, *ends, args.tasks)
    if args.times:
        made = table.timed(made, _rows(document.files(args.times))[1], args.against)
    shown = not header["engine"].startswith("restated")
    return header, table.markdown(made, args.by_task, shown, args.kept)


def _document(args):
    path = pathlib.Path(args.file)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        setting = results.load(path)
        patterns = args.results or setting.get("accuracy", {}).get("results", [])
        header, rows = _rows(document.files(patterns))
        costs = {**document.costs(setting, header, rows), "results": patterns}
        setting["accuracy"] = {**setting.get("accuracy", {}), **costs}
        made = json.dumps(setting, indent=2) + "\n"
    else:
        made = document.renewed(text, lambda words: _table(arguments.parser().parse_args(["table", *words]))[1])
    if made == text:
        return 0
    if args.check:
        print(f"lab: {path}: differs from the results; make it anew", file=sys.stderr)
        return 1
    path.write_text(made, encoding="utf-8")
    return 0


def main():
    args = arguments.parser().parse_args()
    try:
        if args.verb == "prompts":
            _make(args)
        elif args.verb == "run":
            _run(args)
        elif args.verb == "convert":
            from lab.engines.hugging_face import convert

            convert(args.model, args.out)
        elif args.verb == "sweep":
            _sweep(args)
        elif args.verb == "recommend":
            _recommend(args)
        elif args.verb == "head-map":
            _head_map(args)
        elif args.verb == "controller":
            _controller(args)
        elif args.verb == "table":
            header, text = _table(args)
            print(f"{header['model']}, {header['engine']}, {header['device']}, {header['date']}\n\n{text}")
        elif args.verb == "document":
            return _document(args)
        elif args.verb == "plot":
            from lab import plots

            header, rows = _rows(args.results)
            plots.draw(header, table.lines(rows), args.out)
        else:
            for task in tasks.TASKS.values():
                print(f"{task.name:18} {task.new_tokens:4} tokens for the answer")
    except ERRORS as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(_missing(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted; run it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
