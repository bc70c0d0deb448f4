package org.gemmaedge.core.screen

/**
 * Something to say, in no language: the name of a string resource and its values, each a text, a number or a phrase.
 * tests/android holds the names and the number of values against the resources of each language.
 */
data class Phrase(val name: String, val values: List<Any>)

/** A name, and its values. */
fun phrase(name: String, vararg values: Any) = Phrase(name, values.toList())
