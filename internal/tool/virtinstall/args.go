package virtinstall

// arguments is the parsed command line: for each option what it was given, in
// order (V1).
type arguments struct {
	values map[string][]string // by the option's first name, without dashes
}

// last returns what an option was given last.
func (a *arguments) last(flag string) (string, bool) {
	v := a.values[flag]
	if len(v) == 0 {
		return "", false
	}
	return v[len(v)-1], true
}

// all returns everything that an option was given.
func (a *arguments) all(flag string) []string { return a.values[flag] }

// has reports whether an option was given.
func (a *arguments) has(flag string) bool { return len(a.values[flag]) > 0 }

func parseArguments(args []string) (*arguments, error) {
	if len(args) > 0 {
		return nil, &usageError{"unrecognized arguments: " + args[0]}
	}
	return &arguments{values: map[string][]string{}}, nil
}
