#!/usr/bin/env bash
# Prints about 80 KB of English prose that every Debian and Ubuntu machine already holds: four
# licence texts of /usr/share/common-licenses, their paragraphs set as one line each. For
# perplexities that anyone can repeat (`tandem eval --text`, the peers' llama-perplexity).
#
# Every character but the letters, digits and punctuation of ASCII is dropped and all spacing is
# made anew, so that a re-wrapped or re-indented edition of a licence gives the same bytes. The
# wording can still differ between releases (an address, say); a recorded perplexity therefore
# goes with the digest that --digest prints.
set -euo pipefail
export LC_ALL=C

dir=${TANDEM_LICENSES:-/usr/share/common-licenses}
texts=(GPL-3 Apache-2.0 GFDL-1.3 MPL-2.0)

usage() {
    cat <<'END'
usage: tests/make_prose.sh [--digest]
Prints a fixed English text of about 80 KB made of this machine's licence texts.
  --digest   print the text's SHA-256 instead
END
}

prose() {
    local text
    for text in "${texts[@]}"; do
        # tr before awk: a form feed or a no-break space must not survive into a "word".
        tr -c '\n -~' ' ' <"$dir/$text"
        printf '\n\n'
    done | awk '
        # A box of asterisks and the rules under titles are drawing, not prose.
        { gsub(/^ *\*+|\*+ *$/, ""); gsub(/ +/, " "); gsub(/^ | $/, "") }
        /^[-=_]+$/ { next }
        $0 != "" { line = line == "" ? $0 : line " " $0; next }
        line != "" { print gap line; gap = "\n"; line = "" }'
}

case ${1:-} in
'') ;;
-h | --help) usage; exit 0 ;;
--digest) ;;
*) printf "make_prose: unknown argument '%s'; see tests/make_prose.sh --help\n" "$1" >&2; exit 2 ;;
esac

for text in "${texts[@]}"; do
    if [ ! -r "$dir/$text" ]; then
        printf 'make_prose: no %s in %s (Debian and Ubuntu have it in the package base-files)\n' "$text" "$dir" >&2
        exit 1
    fi
done

if [ "${1:-}" = --digest ]; then
    prose | sha256sum | cut -d' ' -f1
else
    prose
fi
