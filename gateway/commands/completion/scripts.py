"""The script of each shell. It runs `npu-gateway completion --words WORD... :CURRENT` and shows its lines.

So a script stays right when commands and models change. The colon keeps an empty word, which PowerShell would drop.
"""

from __future__ import annotations

_BASH = r"""
# npu-gateway: completion for bash. Add this line to ~/.bashrc:
#   eval "$(npu-gateway completion bash)"
_npu_gateway() {
    local line="${COMP_LINE:0:COMP_POINT}" current prefix candidate
    local -a words
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    current="${words[${#words[@]}-1]}"
    unset "words[${#words[@]}-1]"
    prefix="${current%"${current##*[:=]}"}"  # bash completes only what follows the last of these
    COMPREPLY=()
    while IFS= read -r candidate; do
        candidate="${candidate%%$'\t'*}"
        COMPREPLY+=("${candidate#"$prefix"}")
    done < <("${words[0]/#\~/$HOME}" completion --words "${words[@]:1}" ":$current" 2>/dev/null | tr -d '\r')
}
complete -o bashdefault -o default -F _npu_gateway npu-gateway npu-gateway.exe
"""

_ZSH = r"""
#compdef npu-gateway
# npu-gateway: completion for zsh. Add this line to ~/.zshrc, after compinit:
#   eval "$(npu-gateway completion zsh)"
_npu_gateway() {
    local -a lines described
    local line
    lines=("${(@f)$(${~words[1]} completion --words "${(@)words[2,CURRENT-1]}" ":${words[CURRENT]}" 2>/dev/null)}")
    for line in $lines; do
        [[ -n $line ]] && described+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
    done
    if (( $#described )); then _describe -V command described; else _files; fi
}
compdef _npu_gateway npu-gateway
"""

_FISH = r"""
# npu-gateway: completion for fish. Write this to ~/.config/fish/completions/npu-gateway.fish:
#   npu-gateway completion fish > ~/.config/fish/completions/npu-gateway.fish
function __npu_gateway_candidates
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l found ($words[1] completion --words $words[2..-1] ":$current" 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path $current
    end
end
complete -c npu-gateway -f -a '(__npu_gateway_candidates)'
"""

_POWERSHELL = r"""
# npu-gateway: completion for PowerShell. Add this line to the file $PROFILE:
#   npu-gateway completion powershell | Out-String | Invoke-Expression
Register-ArgumentCompleter -Native -CommandName npu-gateway, npu-gateway.exe -ScriptBlock {
    param($current, $line, $cursor)
    $before = @($line.CommandElements | Where-Object { $_.Extent.EndOffset -lt $cursor })
    $words = @($before | ForEach-Object { $_.Extent.Text })
    $program = $words[0].Trim('"', "'")
    $words = @($words | Select-Object -Skip 1)
    & $program completion --words @words ":$current" 2>$null | ForEach-Object {
        $text, $help = $_ -split "`t", 2
        if (-not $help) { $help = $text }
        [System.Management.Automation.CompletionResult]::new($text, $text, 'ParameterValue', $help)
    }
}
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH, "powershell": _POWERSHELL}
