# bash completion for stasis and criu
_stasis() {
  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}
  local common="--images-dir --work-dir --log-file --verbosity --action-script --pidfile --display-stats --timeout --help"
  local transfer="--address --port --ps-socket --tls --tls-cacert --tls-cacrl --tls-cert --tls-key --tls-no-cn-verify"
  case $previous in
    -D|--images-dir|-W|--work-dir|--prev-images-dir) mapfile -t COMPREPLY < <(compgen -d -- "$current"); return ;;
    -t|--tree) mapfile -t COMPREPLY < <(compgen -W "$(ps -eo pid=)" -- "$current"); return ;;
    --file-validation) mapfile -t COMPREPLY < <(compgen -W "filesize buildid checksum" -- "$current"); return ;;
    --pre-dump-mode) mapfile -t COMPREPLY < <(compgen -W "splice read" -- "$current"); return ;;
    --format) mapfile -t COMPREPLY < <(compgen -W "text json dot" -- "$current"); return ;;
    --compress) mapfile -t COMPREPLY < <(compgen -W "zstd lz4" -- "$current"); return ;;
    -o|--log-file|--pidfile|--action-script|--identity|--key-file|--recipient|--tls-cacert|--tls-cacrl|--tls-cert|--tls-key) mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
  esac
  if [ "$COMP_CWORD" = 1 ]; then
    mapfile -t COMPREPLY < <(compgen -W "dump pre-dump page-server restore dirty cleanup plan show diff check tree keygen dedup lazy-pages --help --version" -- "$current")
    return
  fi
  local words=""
  case ${COMP_WORDS[1]} in
    dump) words="$common --tree --leave-running --cow --no-cow --snapshot-memory-limit --leave-stopped --shell-job --link-remap --file-locks --ext-unix-sk --tcp-established --tcp-close --skip-in-flight --network-lock --ghost-limit --file-validation --external --evasive-devices --force-irmap --irmap-scan-path --track-mem --prev-images-dir --show-leftovers --compress --encrypt --recipient --key-file --identity --auto-dedup --page-server --lazy-pages --status-fd $transfer" ;;
    pre-dump) words="$common --tree --track-mem --prev-images-dir --pre-dump-mode --compress --encrypt --recipient --key-file --identity --auto-dedup --page-server $transfer" ;;
    page-server) words="$common --prev-images-dir --auto-dedup --lazy-pages --identity --key-file --daemon --status-fd $transfer" ;;
    dirty) words="--tree --intervals --rounds --json --plot --stop --log-file --verbosity --timeout --help" ;;
    restore) words="$common --restore-detached --restore-sibling --leave-stopped --shell-job --tcp-established --tcp-close --file-validation --inherit-fd --plan-cache --lazy-pages --auto-dedup --exec-cmd --identity --key-file" ;;
    lazy-pages) words="$common --daemon --status-fd --page-server --identity --key-file $transfer" ;;
    cleanup|dedup) words="$common --identity --key-file" ;;
    plan) words="$common --format --shell-job --tcp-established --tcp-close --file-validation --inherit-fd --plan-cache --lazy-pages --auto-dedup --identity --key-file" ;;
    show) words="--images-dir --tree --compact --identity --key-file --help" ;;
    diff) words="--ignore --identity --key-file --help" ;;
    keygen) words="--shared --help" ;;
    tree) words="plan check run random capture canon same draw encode decode dataset --tree --format --search-limit --seed --operations --pid-namespaces --terminals --program --hash --count --help" ;;
    check) words="$common --feature --extra --all --experimental" ;;
  esac
  if [[ $current == -* || ( ${COMP_WORDS[1]} == tree && $COMP_CWORD == 2 ) ]]; then mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
  else mapfile -t COMPREPLY < <(compgen -f -- "$current"); fi
}
complete -F _stasis stasis criu
