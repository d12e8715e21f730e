# Flattens the YAML that seeds are made of into lines "a.b.0.c<TAB>value":
# block and flow collections, plain, quoted, literal and folded scalars. In a
# value newline and backslash are written \n and \\. Not known: anchors, tags,
# multi-line quoted scalars, keys with spaces.
function emit(path, v) {
    gsub(/\\/, "\\\\", v)
    gsub(/\n/, "\\n", v)
    gsub(/\t/, "\\t", v)
    print substr(path, 2) "\t" v
}
function flush_pending() {
    if (pending != "") emit(pending, plain(pending_value))
    pending = ""
}
# plain decodes a scalar: quotes, escapes, comment.
function plain(s,   i, c, r) {
    if (s ~ /^"/) {
        r = ""
        for (i = 2; i <= length(s); i++) {
            c = substr(s, i, 1)
            if (c == "\"") break
            if (c == "\\") {
                c = substr(s, ++i, 1)
                if (c == "n") c = "\n"
                else if (c == "t") c = "\t"
            }
            r = r c
        }
        return r
    }
    if (s ~ /^'/) {
        r = ""
        for (i = 2; i <= length(s); i++) {
            c = substr(s, i, 1)
            if (c == "'") {
                if (substr(s, i + 1, 1) != "'") break
                i++
            }
            r = r c
        }
        return r
    }
    sub(/[ \t]+#.*$/, "", s)
    sub(/[ \t]+$/, "", s)
    if (s == "~" || s == "null") return ""
    return s
}
# depth_of counts the brackets that a flow collection leaves open.
function depth_of(s,   i, c, q, d) {
    d = 0; q = ""
    for (i = 1; i <= length(s); i++) {
        c = substr(s, i, 1)
        if (q != "") {
            if (q == "\"" && c == "\\") i++
            else if (c == q) q = ""
        } else if (c == "\"" || c == "'") q = c
        else if (c == "[" || c == "{") d++
        else if (c == "]" || c == "}") d--
    }
    return d
}
# flow parses the flow node of fs at position fp.
function flow(path,   c, n, key) {
    while (substr(fs, fp, 1) == " ") fp++
    c = substr(fs, fp, 1)
    if (c == "[" || c == "{") {
        fp++
        n = 0
        while (fp <= length(fs)) {
            while (substr(fs, fp, 1) ~ /^[ ,]$/) fp++
            if (substr(fs, fp, 1) ~ /^[\]}]$/) { fp++; return }
            if (c == "[") flow(path "." n++)
            else {
                key = plain(flow_scalar(":"))
                while (substr(fs, fp, 1) ~ /^[ :]$/) fp++
                flow(path "." key)
            }
        }
        return
    }
    emit(path, plain(flow_scalar("")))
}
function flow_scalar(stop,   c, start, q) {
    start = fp
    q = substr(fs, fp, 1)
    if (q == "\"" || q == "'") {
        for (fp++; fp <= length(fs); fp++) {
            c = substr(fs, fp, 1)
            if (q == "\"" && c == "\\") fp++
            else if (c == q) { fp++; break }
        }
        return substr(fs, start, fp - start)
    }
    while (fp <= length(fs)) {
        c = substr(fs, fp, 1)
        if (c == "," || c == "]" || c == "}" || (stop != "" && c == stop)) break
        fp++
    }
    return substr(fs, start, fp - start)
}
# value handles what stands behind "key:" or "-".
function value(path, n, v) {
    if (v ~ /^[|>][-+0-9]*[ \t]*(#.*)?$/) {
        block_path = path; block_indent = n; block_style = substr(v, 1, 1)
        block_chomp = v ~ /-/ ? "-" : (v ~ /\+/ ? "+" : "")
        block_at = -1; block_text = ""; in_block = 1
    } else if (v ~ /^[\[{]/) {
        fs = v; fp = 1
        if (depth_of(fs) > 0) { flow_path = path; return }
        flow(path)
    } else if (v != "" && v !~ /^#/) {
        pending = path; pending_value = v; pending_indent = n
    }
}
function end_block() {
    in_block = 0
    if (block_chomp != "+") sub(/\n+$/, block_chomp == "-" ? "" : "\n", block_text)
    emit(block_path, block_text)
}
function pop(n, item) {
    while (sp > 0 && (ind[sp] > n || (ind[sp] == n && (!item || kind[sp] == "-")))) sp--
}
function content(n, s,   key, rest, parent) {
    if (s ~ /^- / || s == "-") {
        pop(n, 1)
        parent = path_of[sp]
        sp++
        ind[sp] = n; kind[sp] = "-"
        path_of[sp] = parent "." (count[parent]++ + 0)
        rest = substr(s, 2)
        if (match(rest, /^ +/)) rest = substr(rest, RLENGTH + 1)
        else RLENGTH = 0
        if (rest == "" || rest ~ /^#/) return
        content(n + 1 + RLENGTH, rest)
    } else if (match(s, /^("[^"]*"|'[^']*'|[A-Za-z0-9_.\/-]+):([ \t]|$)/)) {
        key = substr(s, 1, RLENGTH)
        sub(/:[ \t]?$/, "", key)
        rest = substr(s, RLENGTH + 1)
        sub(/^[ \t]+/, "", rest)
        pop(n, 0)
        parent = path_of[sp]
        sp++
        ind[sp] = n; kind[sp] = "k"
        path_of[sp] = parent "." plain(key)
        value(path_of[sp], n, rest)
    } else if (sp > 0) value(path_of[sp], ind[sp], s)
}
BEGIN { sp = 0; path_of[0] = ""; ind[0] = -1 }
{
    sub(/\r$/, "")
    match($0, /^ */)
    n = RLENGTH
    s = substr($0, n + 1)
}
in_block {
    if (s == "") { block_text = block_text "\n"; next }
    if (n > block_indent) {
        if (block_at < 0) block_at = n
        s = substr($0, block_at + 1)
        if (block_style == ">" && block_text != "" && block_text !~ /\n\n$/) sub(/\n$/, " ", block_text)
        block_text = block_text s "\n"
        next
    }
    end_block()
}
flow_path != "" {
    fs = fs " " s
    if (depth_of(fs) <= 0) { fp = 1; flow(flow_path); flow_path = "" }
    next
}
s == "" || s ~ /^#/ { next }
n == 0 && (s ~ /^---/ || s ~ /^\.\.\./ || s ~ /^%/) { next }
pending != "" && n > pending_indent && s !~ /^- / && pending_value !~ /^["']/ {
    pending_value = pending_value " " s
    next
}
{
    flush_pending()
    content(n, s)
}
END {
    if (in_block) end_block()
    flush_pending()
}
