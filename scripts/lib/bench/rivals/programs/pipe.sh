#!/usr/bin/env bash
# The shell's way, as a rival: inotifywait, openssl and amqp-publish in a loop. usage: pipe.sh DIR AMQP_URL
set -euo pipefail

# These tools write the default virtual host as %2f.
url=${2%/}/%2f
inotifywait --monitor --quiet --event close_write,moved_to --format '%w%f' "$1" | while IFS= read -r path; do
    hash=$(openssl dgst -sha256 -r "$path") || continue
    amqp-publish --url "$url" --exchange apollonia --persistent --content-type application/json \
        --body "{\"file_path\":\"$path\",\"sha256_hash\":\"${hash%% *}\"}"
done
