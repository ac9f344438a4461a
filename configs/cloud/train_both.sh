#!/usr/bin/env bash
# Trains the models one after the other, exports them, and keeps their checkpoint folders somewhere
# that outlives this machine. Started again, here or on another machine, it goes on where it was;
# when everything is done it does nothing. The tasks in this folder declare what it reads:
#
#   KMIDI_MODELS       what to train, in this order
#   KMIDI_MIDI_DATA    prepared music: a folder, or s3://BUCKET/FOLDER, which is copied first
#   KMIDI_CLOUD_DATA   prepared clouds, likewise
#   KMIDI_MIDI_FLAGS   flags of `python -m kmidi_torch.train` for the generator, split at spaces
#   KMIDI_CLOUD_FLAGS  flags for Spectocloud
#   KMIDI_EXPORTS      targets of `python -m kmidi_torch.export`, as "onnx coreml"; empty: none
#   KMIDI_OUT          folder of the checkpoint folders, on a disk of this machine
#   KMIDI_KEEP         where to keep them: a folder, such as a mounted bucket, or s3://BUCKET/FOLDER;
#                      empty: nowhere but here
#   KMIDI_KEEP_EVERY   seconds between two times
#   KMIDI_PRECISION    bf16, fp16 or fp32
#   KMIDI_GPUS         GPUs to train on; empty: all of this machine, 0: the CPU
#   AWS_ENDPOINT_URL   of a store that speaks S3 but is not Amazon's; empty: Amazon's
# shellcheck disable=SC2317  # it does not see that traps call functions
set -euo pipefail

# made by install.sh; its folder also holds aws
python=${KMIDI_PYTHON:-.venv/bin/python}
PATH=$(dirname "$python"):$PATH
[ -n "${AWS_ENDPOINT_URL:-}" ] || unset AWS_ENDPOINT_URL
for variable in KMIDI_OUT KMIDI_KEEP KMIDI_MIDI_DATA KMIDI_CLOUD_DATA; do
    # what comes in a variable is quoted, so nobody has put the home folder in place of ~
    [[ ${!variable} != \~/* ]] || declare "$variable=$HOME/${!variable#\~/}"
done
mkdir -p "$KMIDI_OUT/.keeping"
out=$(cd "$KMIDI_OUT" && pwd)

say() { echo "train_both: $*" >&2; }

is_bucket() { [[ $1 == s3://* ]]; }

# --- keeping: `last` must never be newer than the `best` beside it, so it is held first, put last

# put FILE PLACE: a whole file; it has its name only when it is complete
put() {
    if is_bucket "$2"; then
        aws s3 cp --only-show-errors "$1" "$2"
    else
        mkdir -p "$(dirname "$2")" || return 1
        cp "$1" "$2.part" || return 1
        # a mounted bucket that cannot rename shows a file only when it is complete anyway
        mv -f "$2.part" "$2" || cp "$1" "$2"
    fi
}

# put_changed MODEL: what the model's folder has besides its last save and hidden, unfinished files
put_changed() {
    local folder=$out/$1 list=$out/.keeping/$1.kept file line
    touch "$list" && : >"$list.next" || return 1
    # times do not tell: what was written in a hidden place gets its name, and no new time, later
    find "$folder" -mindepth 1 \( -name '.*' -o -path "$folder/last" \) -prune -o -type f -print |
        while IFS= read -r file; do
            # what is taken away meanwhile needs no keeping
            { line="$(cksum <"$file") $file"; } 2>/dev/null || continue
            grep -qxF -- "$line" "$list" || put "$file" "$KMIDI_KEEP/${file#"$out/"}" || return 1
            echo "$line" >>"$list.next"
        done || return 1
    mv -f "$list.next" "$list"
}

# keep: put what has changed since the last time where it outlives this machine; it is asked whether
# it worked, so nothing in it ends by itself on an error
keep() {
    local model state held
    [ -n "$KMIDI_KEEP" ] || return 0
    for model in $KMIDI_MODELS; do
        [ -d "$out/$model" ] || continue
        state=$out/$model/last/state.safetensors held=$out/.keeping/$model.last
        # saves replace the file, so a second name keeps this one as it is
        rm -f "$held" || return 1
        [ ! -e "$state" ] || ln "$state" "$held" || return 1
        put_changed "$model" || return 1
        if [ -e "$held" ] && ! [ "$held" -ef "$held.kept" ]; then
            put "$held" "$KMIDI_KEEP/$model/last/state.safetensors" || return 1
            mv -f "$held" "$held.kept" || return 1
        fi
    done
}

# bring_back: what an earlier machine has kept, where this one has nothing yet
bring_back() {
    local model
    [ -n "$KMIDI_KEEP" ] || return 0
    for model in $KMIDI_MODELS; do
        [ ! -e "$out/$model" ] || continue
        # under another name until it is all there
        rm -rf "$out/.keeping/$model.back"
        mkdir "$out/.keeping/$model.back"
        if is_bucket "$KMIDI_KEEP"; then
            aws s3 sync --only-show-errors "$KMIDI_KEEP/$model" "$out/.keeping/$model.back"
        elif [ -d "$KMIDI_KEEP/$model" ]; then
            cp -R "$KMIDI_KEEP/$model/." "$out/.keeping/$model.back"
            find "$out/.keeping/$model.back" -name '*.part' -exec rm {} +
        fi
        if [ -e "$out/.keeping/$model.back/config.yaml" ]; then
            mv "$out/.keeping/$model.back" "$out/$model"
            say "$model: brought back from $KMIDI_KEEP"
        fi
    done
}

keeper=
keep_regularly() {
    local napping=
    trap - EXIT
    trap '[ -z "$napping" ] || kill "$napping"; exit 0' TERM
    while true; do
        sleep "$KMIDI_KEEP_EVERY" &
        napping=$!
        wait "$napping"
        napping=
        keep || say "could not keep the checkpoints in $KMIDI_KEEP; trying again later"
    done
}

finish() {
    local status=$?
    trap - EXIT
    if [ -n "$keeper" ]; then
        kill "$keeper" 2>/dev/null || true
        wait "$keeper" 2>/dev/null || true
    fi
    if ! keep; then
        say "could not keep the checkpoints in $KMIDI_KEEP; they are in $out"
        [ "$status" != 0 ] || status=1
    fi
    exit "$status"
}

# --- commands: a signal reaches the one that runs, which saves and ends

child=
stopped=
stop() {
    stopped=yes
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true
}

# attended COMMAND...: run it and return its status, even when a signal comes meanwhile
attended() {
    local status
    [ -z "$stopped" ] || exit 130
    "$@" &
    child=$!
    while true; do
        status=0
        wait "$child" || status=$?
        # a signal ends the wait, not the command
        kill -0 "$child" 2>/dev/null || break
    done
    child=
    return "$status"
}

# --- work: done.txt in a checkpoint folder names what need not be done again

is_done() { grep -qxF -- "$2" "$out/$1/done.txt" 2>/dev/null; }

# local_data PLACE: prints its folder, after copying it here from a bucket
local_data() {
    local folder=$1
    if is_bucket "$1"; then
        folder=$HOME/kmidi-data/$(basename "$1")
        aws s3 sync --only-show-errors "$1" "$folder" || return 1
    fi
    echo "$folder"
}

gpu_count() {
    if [ -n "$KMIDI_GPUS" ]; then
        echo "$KMIDI_GPUS"
    elif [ -n "${SKYPILOT_NUM_GPUS_PER_NODE:-}" ]; then
        echo "$SKYPILOT_NUM_GPUS_PER_NODE"
    else
        "$python" -c 'import torch; print(torch.cuda.device_count())'
    fi
}

# train MODEL DATA FLAG...
train() {
    local model=$1 place=$2 data line gpus
    local flags=(--model "$model" --out "$out/$model" --set "training.precision=$KMIDI_PRECISION")
    local launcher=()
    shift 2
    line="train $place $KMIDI_PRECISION $*"
    if is_done "$model" "$line"; then
        say "$model: already trained"
        return
    fi
    data=$(local_data "$place")
    gpus=$(gpu_count)
    if [ "$gpus" = 0 ]; then
        flags+=(--device cpu)
    elif [ "$gpus" -gt 1 ]; then
        launcher=(-m torch.distributed.run --nproc-per-node "$gpus" --max-restarts 3)
    fi
    [ ! -e "$out/$model/config.yaml" ] || flags+=(--resume)
    say "$model: training, GPUs: $gpus"
    attended "$python" "${launcher[@]}" -m kmidi_torch.train "${flags[@]}" --data "$data" "$@"
    echo "$line" >>"$out/$model/done.txt"
}

# export_to MODEL TARGET
export_to() {
    local line
    line="$2 $(cksum <"$out/$1/best.safetensors")" || return 1
    if is_done "$1" "$line"; then
        say "$1: already exported to $2"
        return
    fi
    attended "$python" -m kmidi_torch.export "$2" --model "$1" --checkpoint "$out/$1" || return 1
    echo "$line" >>"$out/$1/done.txt"
}

main() {
    local model target status failed="" midi_flags cloud_flags
    for model in $KMIDI_MODELS; do
        if [[ $model != midi_generator && $model != spectocloud ]]; then
            say "KMIDI_MODELS: $model is not trained here; give midi_generator, spectocloud or both."
            exit 2
        fi
    done
    bring_back
    trap finish EXIT
    trap stop TERM INT
    if [ -n "$KMIDI_KEEP" ]; then
        keep_regularly &
        keeper=$!
    fi
    read -ra midi_flags <<<"$KMIDI_MIDI_FLAGS"
    read -ra cloud_flags <<<"$KMIDI_CLOUD_FLAGS"
    for model in $KMIDI_MODELS; do
        if [ "$model" = midi_generator ]; then
            train "$model" "$KMIDI_MIDI_DATA" "${midi_flags[@]}"
        else
            train "$model" "$KMIDI_CLOUD_DATA" "${cloud_flags[@]}"
        fi
    done
    # what was trained is kept even where an export is not equal to it
    for model in $KMIDI_MODELS; do
        for target in $KMIDI_EXPORTS; do
            status=0
            export_to "$model" "$target" || status=$?
            [ -z "$stopped" ] || exit 130
            [ "$status" = 0 ] || failed="$failed $model to $target;"
        done
    done
    if [ -n "$failed" ]; then
        say "not exported:$failed what was trained is in $out"
        exit 1
    fi
    say "done: $out"
}

# on one line, because a launch replaces the file while it may still be read
main; exit
