"""A program in the place of SuperNode or trainer, for what a true one does not do on demand.

    stand_in.py MODE FLAGS       FLAGS as the true one has them, see SURROUNDINGS

good      answers, ends with its standard input       dies      ends with code 3 after half a second
nonsense  says what is no message, then is good       hangs     says nothing, heeds neither its input nor SIGTERM
breaks    ends when it is asked for a search          refuses   says that it cannot do what is asked
bare      is good, but has no model that classifies
"""

import base64
import io
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

from PIL import Image, ImageDraw

WIDTH, HEIGHT = 640, 480
LANDMARK = (460, 150)


def say(event, **details):
    sys.stdout.write(json.dumps({"event": event, **details}) + "\n")
    sys.stdout.flush()


def log(line):
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def png(depth):
    image = Image.new("L", (WIDTH, HEIGHT), 30 + 4 * depth)
    pen = ImageDraw.Draw(image)
    pen.ellipse((140, 40, 560, 440), fill=110)
    pen.ellipse((400, 100, 520, 200), fill=190)
    pen.rectangle((220, 260, 300, 340), fill=70)
    packed = io.BytesIO()
    image.save(packed, "PNG")
    return base64.b64encode(packed.getvalue()).decode()


def path(start, landmark):
    """Walk towards the landmark in steps of 6 pixels, then to and fro."""
    positions = [list(start)]
    while math.dist(positions[-1][:2], landmark) > 6 and len(positions) < 200:
        at = list(positions[-1])
        axis = 0 if abs(landmark[0] - at[0]) >= abs(landmark[1] - at[1]) else 1
        at[axis] += 6 if landmark[axis] > at[axis] else -6
        positions.append(at)
    end = len(positions) - 1
    positions += [positions[end - 1], positions[end]] if end else []
    return positions, end


def answer(mode, asked, at):
    do, number = asked["do"], asked["id"]
    if mode == "refuses" and do != "ping":
        say("refused", id=number, sentence="the image cannot be read")
    elif do == "ping":
        say("pong", id=number)
    elif do == "scenes":
        made = [("i1", "head 01.png", ["sella", "nasion"], 1), ("i2", "head <02>.png", ["sella"], 1),
                ("v1", "volume.nii", ["sella"], 9)]  # fmt: skip
        scenes = [
            {"image": i, "name": n, "tasks": t, "width": WIDTH, "height": HEIGHT, "depth": d} for i, n, t, d in made
        ]
        say("scenes", id=number, scenes=scenes, models=[{"run": "sella-1", "round": 7, "tasks": ["sella", "nasion"]}])
    elif do == "image":
        say("image", id=number, png=png(asked["slice"]), width=WIDTH, height=HEIGHT)
    elif do == "search":
        if mode == "breaks":
            sys.exit(4)
        positions, end = path(asked["start"], LANDMARK)
        known = asked["image"] != "i2"
        distances = [0.25 * math.dist(p[:2], LANDMARK) for p in positions]
        say(
            "path", id=number, run=asked["run"], round=7, positions=positions, boxes=[90.0] * len(positions),
            q=[10 - d / 10 for d in distances], end=end, landmark=[*LANDMARK, *positions[0][2:]] if known else None,
            distance_mm=distances if known else None, error_mm=distances[end] if known else None,
        )  # fmt: skip
    elif do == "labelled":
        if mode == "bare":
            say("labelled", id=number, models=[])
        else:
            labelled(number, asked["run"], asked["part"])
    elif do == "explain":
        explain(number, asked["run"], asked["image"])
    elif do in ("send", "keep"):
        (at / do).write_text(json.dumps(asked), encoding="utf-8")


IMAGES = {"s1": ("smear <01>.png", "granular"), "s2": ("smear 02.png", "round"), "s3": ("tiny.png", "round")}
CLASSES = ["granular", "round"]


def labelled(number, run, part):
    models = [
        {"run": "cells-2", "round": 4, "algorithm": "attention", "classes": CLASSES},
        {"run": "lungs-1", "round": 9, "algorithm": "apga", "classes": ["clear", "opaque"]},
    ]
    images = [
        {"image": image, "name": name, "label": label, "group": "", "learned": image == "s2"}
        for image, (name, label) in IMAGES.items()
        if part in name
    ]
    say("labelled", id=number, models=models, run=run or "cells-2", images=images, total=len(images))


def explain(number, run, image):
    if image == "s3" or image not in IMAGES:
        say("refused", id=number, sentence="tiny.png: found 9 × 9 pixels; expected at least a patch, 50 × 50")
        return
    name, label = IMAGES[image]
    said = {
        "run": run, "round": 4, "name": name, "label": label, "colours": ["#d55e00", "#56b4e9"],
        "probabilities": [0.9, 0.1], "remarks": ["4.71% of the pixels were read"],
    }  # fmt: skip
    said["panels"] = [
        {"title": "What it looked at", "words": "The patches.", "png": png(0)},
        {"title": "Attention", "words": "How likely.", "png": png(40), "low": 0, "high": 12.25, "scale": "times"},
    ]
    if run == "cells-2":
        patches = [
            {"x": 30 * n, "y": 40, "times": 1 + n % 2, "weight": 0.1 / (n + 1), "votes": [0.8, -0.6], "png": png(5 * n)}
            for n in range(12)
        ]
        say("explained", id=number, classes=CLASSES, patches=patches, places=14, side=50, **said)
    else:
        parts = [{"name": "what the mask keeps", "probabilities": [0.95, 0.05]}]
        say("explained", id=number, classes=["clear", "opaque"], parts=parts, **said)


def main(mode, flags):
    at = Path(flags[flags.index("--settings") + 1]).parent / "site" if "--settings" in flags else Path()
    if mode == "hangs":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(3600)
    if mode == "dies":
        time.sleep(0.5)
        log("Traceback: patient7.png")
        sys.exit(3)
    if "--settings" not in flags:
        while os.read(0, 4096):
            pass
        return
    if mode == "nonsense":
        for line in ("hello", "[1, 2]", '{"event": "path"}', '{"event": "round", "run": 3}', "\x00" * 200):
            sys.stdout.write(line + "\n")
    log(json.dumps({"level": "info", "event": "begins", "images": 3, "where": ["a list"]}))
    log("a line of patient7.png")
    say("ready")
    told = at / "say"  # lines that a test wants said
    if told.exists():
        sys.stdout.write(told.read_text(encoding="utf-8"))
        sys.stdout.flush()
    for line in sys.stdin:
        answer(mode, json.loads(line), at)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
