# shellcheck shell=bash disable=SC2034
# tpu_vm.sh and slurm.sh source this: flags with defaults; an error is one line, with exit code 2.
declare -A flag # name -> value; a flag whose default is false takes no value: --spot
command=()      # the words after --

invalid() { # NAME VALUE WHAT_IT_MUST_BE [NEAREST]
  echo "error: $1 is '$2'; it must be $3${4:+; nearest: $4}" >&2
  exit 2
}

nearest() { # VALUE CHOICE...: the choice that looks most like VALUE
  python3 -c 'import difflib, sys; print(*difflib.get_close_matches(sys.argv[1], sys.argv[2:], 1, 0))' "$@"
}

check_choice() { # NAME VALUE CHOICE...
  local choice
  for choice in "${@:3}"; do if [[ $2 == "$choice" ]]; then return; fi; done
  invalid "$1" "$2" "one of ${*:3}" "$(nearest "${@:2}")"
}

check_flag() { # NAME REGEX WHAT_IT_MUST_BE NEAREST
  if ! [[ ${flag[$1]} =~ ^($2)$ ]]; then invalid "--$1" "${flag[$1]}" "$3" "$4"; fi
}

parse_flags() { # ARGUMENT...
  local name
  while (($#)); do
    name=${1%%=*} name=${name#--}
    case $1 in
      --help | -h) awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0" && exit ;;
      --) command=("${@:2}") && return ;;
      --*) ;;
      *) invalid argument "$1" "a flag, or stand after --" "-- $1" ;;
    esac
    if ! [[ $name =~ ^[a-z_]+$ && -n ${flag[$name]+there} ]]; then
      invalid flag "--$name" "one that --help names" "--$(nearest "$name" "${!flag[@]}")"
    elif [[ ${flag[$name]} =~ ^(true|false)$ ]]; then
      if [[ $1 == *=* ]]; then invalid "--$name" "${1#*=}" "given without a value" "--$name"; fi
      flag[$name]=true
    elif [[ $1 != *=* ]]; then
      invalid "--$name" "" "given as --$name=VALUE" "--$name=${flag[$name]:-VALUE}"
    else
      flag[$name]=${1#*=}
    fi
    shift
  done
}

quoted() { # WORD...: quoted for a shell
  local line
  printf -v line ' %q' "$@"
  echo "${line:1}"
}

call() { # COMMAND...: runs it, or prints it with --dry_run
  if [[ ${flag[dry_run]} == true ]]; then quoted "$@"; else "$@"; fi
}
