# shellcheck shell=bash disable=SC2034
# Sourced by tpu_vm.sh and slurm.sh: flags with defaults, and errors in one line with exit code 2.
declare -A flag    # name -> value; one whose default is true or false is boolean: --spot, --nospot
command=()         # the words after --

invalid() { # NAME VALUE WHAT_IT_MUST_BE [NEAREST]
  echo "error: $1 is '$2'; it must be $3${4:+; nearest: $4}" >&2
  exit 2
}

nearest() { # VALUE CHOICE...: the choice that looks most like it
  python3 -c 'import difflib, sys; print(*difflib.get_close_matches(sys.argv[1], sys.argv[2:], 1, 0))' "$@"
}

check_choice() { # NAME VALUE CHOICE...
  local choice
  for choice in "${@:3}"; do if [[ $2 == "$choice" ]]; then return; fi; done
  invalid "$1" "$2" "one of ${*:3}" "$(nearest "$2" "${@:3}")"
}

check_flag() { # NAME REGEX WHAT_IT_MUST_BE NEAREST
  if ! [[ ${flag[$1]} =~ ^$2$ ]]; then invalid "--$1" "${flag[$1]}" "$3" "$4"; fi
}

check_whole() { # NAME...: of 1 or more
  local name
  for name; do check_flag "$name" '[1-9][0-9]*' "a whole number of 1 or more" 1; done
}

check_seconds() { # NAME...
  local name
  for name; do check_flag "$name" '[0-9]+(\.[0-9]+)?' "a number of seconds" 60; done
}

parse_flags() { # ARGUMENT...
  local name value
  while (($#)); do
    if [[ $1 == -- ]]; then
      command=("${@:2}")
      return
    fi
    if [[ $1 == --help || $1 == -h ]]; then
      awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
      exit
    fi
    if [[ $1 != --* ]]; then invalid "argument" "$1" "a flag, or stand after --" "--$1"; fi
    name=${1#--} value=
    if [[ $name == *=* ]]; then value=${name#*=} name=${name%%=*}; fi
    if [[ $1 != *=* && $name == no* && ${flag[${name#no}]-} =~ ^(true|false)$ ]]; then
      name=${name#no} value=false
    elif [[ $1 != *=* && ${flag[$name]-} =~ ^(true|false)$ ]]; then
      value=true
    fi
    if [[ -z ${flag[$name]+there} ]]; then
      invalid "flag" "--$name" "one that --help names" "--$(nearest "$name" "${!flag[@]}")"
    elif [[ $1 != *=* && -z $value ]]; then
      invalid "--$name" "" "given as --$name=VALUE" "--$name=${flag[$name]:-VALUE}"
    elif [[ ${flag[$name]} =~ ^(true|false)$ ]]; then
      check_choice "--$name" "$value" true false
    fi
    flag[$name]=$value
    shift
  done
}

quoted() { # WORD...: as they have to be written in a shell, sh included
  local word words=() quote="'\\''"
  for word; do
    if ! [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then word="'${word//\'/$quote}'"; fi
    words+=("$word")
  done
  echo "${words[*]}"
}

exec 3>&1      # where --dry_run prints, also where the output of a command is read
call() { # COMMAND...: runs it, or prints it with --dry_run
  if [[ ${flag[dry_run]} == true ]]; then quoted "$@" >&3; else "$@" 3>&-; fi
}
