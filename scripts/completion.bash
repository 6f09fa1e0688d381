# shellcheck shell=bash
# Completes the names of the scripts and their flags in bash, in the root of the repository:
#
#   source scripts/completion.bash
#   .venv/bin/python -m experiments.fig<TAB>
#   .venv/bin/python -m experiments.train --batch<TAB>
#
# The first flag of a script takes as long as its --help.
declare -A _bsjax_words # "scripts" -> the scripts; a script -> its flags

_bsjax_complete() {
  local python=${COMP_WORDS[0]} word=${COMP_WORDS[COMP_CWORD]} script='' i words
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    if [[ ${COMP_WORDS[i]} == -m ]]; then script=${COMP_WORDS[i + 1]} && break; fi
  done
  if [[ ${COMP_WORDS[COMP_CWORD - 1]} == -m ]]; then
    script=scripts
    words=${_bsjax_words[$script]:=$("$python" -m experiments 2>/dev/null | sed -n 's/^  \([a-z]\w*\) .*/experiments.\1/p')}
  elif [[ $script == experiments.* && $word == -* ]]; then
    words=${_bsjax_words[$script]:=$("$python" -m "$script" --helpfull 2>/dev/null |
      sed -n 's/^  --\(\[no\]\)\?\(\w*\): .*/\1 \2/p' | awk 'NF == 2 { print "--" $2; print "--no" $2; next } { print "--" $1 "=" }')}
    compopt -o nospace 2>/dev/null
  else
    return
  fi
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}
complete -o default -F _bsjax_complete python python3 .venv/bin/python
