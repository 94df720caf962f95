package extension

// Map is the values of s that aren't empty, by the names of [Fields], with the
// issuer as issuer and the token's subject as token_subject.
func (s Set) Map() map[string]string {
	m := map[string]string{}
	for i := range table {
		if v := *table[i].value(&s); v != "" {
			m[table[i].field] = v
		}
	}
	return m
}
