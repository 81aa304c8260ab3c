package front

// ParseSubject reads Dex's "sub". It fails for the subject of a client's own tokens, behind which there is no user.
func ParseSubject(sub string) (userID, connectorID string, ok bool) { return parseSubject(sub) }
