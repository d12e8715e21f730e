# Splits a MIME multi-part file into the files dir/00, dir/01, ...; a part in
# base64 gets the suffix .base64.
function close_part() { if (out) close(out); out = "" }
{ sub(/\r$/, "") }
head && match(tolower($0), /boundary="?[^";]+/) {
    boundary = substr($0, RSTART + 9, RLENGTH - 9)
    sub(/^"/, "", boundary)
}
head && $0 == "" { head = 0; next }
head { next }
boundary != "" && $0 == "--" boundary "--" { close_part(); exit }
boundary != "" && $0 == "--" boundary { close_part(); part_head = 1; suffix = ""; next }
part_head && tolower($0) ~ /^content-transfer-encoding: *base64/ { suffix = ".base64" }
part_head && $0 == "" {
    part_head = 0
    out = sprintf("%s/%02d%s", dir, parts++, suffix)
    printf "" >out
    next
}
part_head { next }
out { print >out }
BEGIN { head = 1 }
